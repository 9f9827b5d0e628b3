/** What readelf says, understood. */
import t from "tap";

import { parseReadelf } from "../../../scripts/package/elf.ts";
import { fileList } from "../../../scripts/package/rpm.ts";

const PROGRAM = `
      [Requesting program interpreter: /lib64/ld-linux-x86-64.so.2]
 0x0000000000000001 (NEEDED)             Shared library: [libgcc_s.so.1]
 0x0000000000000001 (NEEDED)             Shared library: [libc.so.6]
 0x000000000000000f (RPATH)              Library rpath: [$ORIGIN/../lib]
  0x0010:   Name: GLIBC_2.17  Flags: none  Version: 3
  0x0020:   Name: GLIBC_2.34  Flags: none  Version: 4
  0x0030:   Name: GLIBC_2.17  Flags: none  Version: 5
`;

await t.test("package: a program's interpreter, libraries, path and versions are read", async (t) => {
  t.same(parseReadelf(PROGRAM), {
    interpreter: "/lib64/ld-linux-x86-64.so.2",
    needed: ["libgcc_s.so.1", "libc.so.6"],
    rpath: "$ORIGIN/../lib",
    runpath: null,
    symbolVersions: ["GLIBC_2.17", "GLIBC_2.34"],
  });
  const none = { interpreter: null, needed: [], rpath: null, runpath: null, symbolVersions: [] };
  t.same(parseReadelf("There is no dynamic section in this file.\n"), none);
});

// What XAPI runs must be ours after an update; what an administrator may tune stays tuned.
await t.test("package: directories of the distribution are nobody's, configuration is kept", async (t) => {
  const file = (path: string, executable = false) => ({ path, kind: "file", executable }) as const;
  t.same(
    fileList([
      { path: "/etc", kind: "directory", executable: true },
      { path: "/etc/xapi.d", kind: "directory", executable: true },
      file("/etc/logrotate.d/weft"),
      file("/etc/xapi.d/plugins/weft", true),
      { path: "/usr/bin/weft", kind: "link", executable: false },
    ]),
    [
      '%dir %attr(0755, root, root) "/etc/xapi.d"',
      '%config(noreplace) %attr(0644, root, root) "/etc/logrotate.d/weft"',
      '%attr(0755, root, root) "/etc/xapi.d/plugins/weft"',
      '"/usr/bin/weft"',
    ],
  );
});
