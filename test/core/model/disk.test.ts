/**
 * What the tools say of real disks (util-linux 2.38, lvm2 2.03.16, Debian 12), and what follows: blank or not, and why; what
 * may be formatted; whose name erases what.
 */
import { gunzipSync } from "node:zlib";
import t from "tap";

import {
  type Disk,
  judgeDisk,
  mayFormat,
  mayWipe,
  nameOfContent,
  POOL_DISK_BYTES_MIN,
} from "../../../src/core/model/disk.ts";
import * as tools from "../../../src/core/model/disk-tools.ts";

/** The beginning of a device after `pvcreate` and `vgcreate old_data`. */
const lvm = gunzipSync(
  Buffer.from(
    "H4sIAAAAAAACA+2YzU7CQBDHgeN64erJpokX44YtKspBkyJVSSrEQjRCSFPoIjVtt/QrBeLZd+AJfAUfxIs338A30N2WGEyINw/G/TWb2Zmdye" +
      "5sT/vP5Tj/GVWuKWqrqeSX/kb7qSiw+PVlWUBIGsiO7x4m7dtQ6/pKYxw5o5E2qE/j5t74wmq2aepmVin8vFFxad+31i4X6Mjz38HhcDgcDofD" +
      "4XA4v8ZLbvEqpI+9pHcgb/uouXOSX/deK2TmbWmfHxcf/Pb+PsQ2ddMIDWEOLFM4FkRUOY+JC2daVIbWmZLAhnY1hvdd14T1ZIIgxpKDTBEEeO" +
      "ISWiCBEfEdI2S1duyU6UpohFFA/Z6oKe1GV5FrqiLuCtST68zeaI2OIvbByDbu0rw+wEmI3VAPrBmmgSOpWgaOkeh2TD2UTr3lFIcGO68+JJ6F" +
      "gzQGvPE0sIaGrcfEjhwandNYjL56ykQMyFQMyGQMyHQMyIQMyJQMmEkZIjBxbA3ZAcQSnZZsQjxJBKsNyaraOpU7aUffGqD5q6dHCHhYp4U+u5" +
      "h9VK0wf0gil/nVKnigH6DjEz3qksWAEwAA",
    "base64",
  ),
);

const blank: Disk = {
  path: "/dev/sdb",
  name: "sdb",
  kind: "disk",
  sizeBytes: 894n << 30n,
  readOnly: false,
  model: "SAMSUNG MZQL2",
  serial: "S64GNE0R1",
  partitions: [],
  uses: [],
  signatures: [],
  volumeGroup: null,
  edges: "zero",
  unread: null,
  pool: null,
};
const oldData: Disk = {
  ...blank,
  edges: null,
  signatures: [{ type: "LVM2_member", label: null }],
  volumeGroup: { name: "old_data", usedBytes: 412n << 30n, devices: 1 },
};

void t.test("lsblk: devices, their parts and what is made of them", async (t) => {
  const text = [
    'NAME="vda" KNAME="vda" PKNAME="" MAJ:MIN="254:0" TYPE="disk" SIZE="274877906944" RO="0" MODEL="" SERIAL=""',
    'NAME="sda" KNAME="sda" PKNAME="" MAJ_MIN="8:0" TYPE="disk" SIZE="480103981056" RO="1" MODEL="SAMSUNG\\x20MZ7" SERIAL="S45P "',
    'NAME="sda1" KNAME="sda1" PKNAME="sda" MAJ:MIN="8:1" TYPE="part" SIZE="1" RO="0" MODEL="" SERIAL=""',
    'NAME="vg-root" KNAME="dm-0" PKNAME="sda1" MAJ:MIN="253:0" TYPE="lvm" SIZE="1" RO="0" MODEL="" SERIAL=""',
    "",
  ].join("\n");
  const rows = tools.parseLsblk(text);
  t.strictSame(
    rows.map(({ name, title, parent, number, kind }) => [name, title, parent, number, kind]),
    [
      ["vda", "vda", null, "254:0", "disk"],
      ["sda", "sda", null, "8:0", "disk"],
      ["sda1", "sda1", "sda", "8:1", "part"],
      ["dm-0", "vg-root", "sda1", "253:0", "lvm"],
    ],
  );
  t.match(rows[1], { sizeBytes: 480_103_981_056n, readOnly: true, model: "SAMSUNG MZ7", serial: "S45P" });
  t.throws(() => tools.parseLsblk('NAME="sda" KNAME="sda"'), /no SIZE|no PKNAME/, "never half a device");
});

void t.test("blkid and wipefs: every signature once, with its label", async (t) => {
  const ext4 = [
    "DEVNAME=/dev/loop1",
    'LABEL=a,b\\"c\\\\d\\ e',
    "UUID=700eb55a",
    "TYPE=ext4",
    "USAGE=filesystem",
  ];
  const label = 'a,b"c\\d e';
  t.strictSame(tools.parseBlkid(ext4.join("\n")), [{ type: "ext4", label }]);
  const wiped = '0x438,700eb55a-7203-45a3-80a4-7e71373a399f,a,b"c\\x5cd\\x20e,ext4\n';
  t.strictSame(tools.parseWipefs(wiped), [{ type: "ext4", label }]);
  const gpt = "0x200,,,gpt\n0x18fffe00,,,gpt\n0x1fe,,,PMBR\n";
  const pt = "DEVNAME=/dev/loop2\nPTUUID=a604158a-84bb-4a24-bc4c-8bfcb4870f66\nPTTYPE=gpt\n";
  t.strictSame(tools.mergeSignatures(tools.parseBlkid(pt), tools.parseWipefs(gpt)), [
    { type: "gpt", label: null },
  ]);
  t.strictSame(tools.parseWipefs("# offset,uuid,label,type\n0xff6,53c6a4de,sw,swap\n"), [
    { type: "swap", label: "sw" },
  ]);
  t.strictSame([tools.parseBlkid("\n"), tools.parseWipefs("")], [[], []], "a blank one");
  t.throws(() => tools.parseWipefs("wipefs: something new"), /wipefs says/, "never taken for nothing");
});

void t.test("LVM: a VG's name is told by pvs, or by the disk itself", async (t) => {
  t.strictSame(tools.parsePvs("  /dev/loop1,old_data,0,1\n  /dev/sdc,,0,0\n").get("/dev/loop1"), {
    name: "old_data",
    usedBytes: 0n,
    devices: 1,
  });
  t.strictSame(tools.volumeGroupOf(lvm), { name: "old_data", usedBytes: null, devices: null });
  for (const length of [0, 511, 512, 600, 4096, 4140, 4600]) tools.volumeGroupOf(lvm.subarray(0, length));
  t.equal(tools.volumeGroupOf(new Uint8Array(1 << 20)), null);
  // Hostile: any byte of the headers may be anything.
  for (let at = 512; at < 4700; at += 1) {
    const bent = Uint8Array.from(lvm);
    bent[at] = 255;
    tools.volumeGroupOf(bent);
  }
});

void t.test("mounts, swaps, and what an XFS says of itself", async (t) => {
  const line = "47 27 7:4 / /mnt/a\\040b rw,noatime shared:1 - xfs /dev/loop4 rw,inode64,noquota\n";
  t.strictSame(tools.parseMounts(line), [
    { number: "7:4", at: "/mnt/a b", kind: "xfs", source: "/dev/loop4" },
  ]);
  t.strictSame(tools.parseSwaps("Filename Type Size\n/dev/sda2  partition 1 2 -2\n"), ["/dev/sda2"]);
  const start = new Uint8Array(4096);
  start.set(Buffer.from("XFSB"));
  start.set(Buffer.from("11111111222243338444555555555555", "hex"), 32);
  start.set(Buffer.from("weft-111111"), 108);
  const uuid = "11111111-2222-4333-8444-555555555555";
  t.strictSame(tools.xfsSuperblock(start), { uuid, label: "weft-111111", inProgress: false });
  start[126] = 1;
  t.equal(tools.xfsSuperblock(start)?.inProgress, true, "as mkfs.xfs leaves it when it is killed");
  t.equal(tools.xfsSuperblock(start.subarray(1)), null);
});

const judged: readonly (readonly [title: string, disk: Disk, verdict: string])[] = [
  ["nothing on it", blank, "blank"],
  ["a VG", oldData, 'data: LVM VG "old_data" (412 GiB used)'],
  [
    "a file system, in use",
    { ...blank, signatures: [{ type: "xfs", label: "data" }], uses: ["mounted at /srv"] },
    "in-use: mounted at /srv",
  ],
  [
    "partitions",
    {
      ...blank,
      edges: null,
      signatures: [{ type: "gpt", label: null }],
      partitions: [
        { name: "sdb2", signatures: [], volumeGroup: null },
        { name: "sdb1", signatures: [{ type: "vfat", label: "EFI" }], volumeGroup: null },
      ],
    },
    'data: GPT partition table with 2 partitions (sdb1: vfat file system "EFI"; sdb2: nothing known)',
  ],
  ["what no tool knows", { ...blank, edges: "data" }, "data: data of no known kind"],
  ["something new", { ...blank, signatures: [{ type: "stratis", label: null }] }, "data: stratis signature"],
  ["not looked at", { ...blank, edges: null }, "unread: its first and last MiB were not read"],
  ["not readable", { ...blank, unread: "I/O error" }, "unread: I/O error"],
  ["read-only", { ...blank, readOnly: true }, "unfit: it is read-only"],
  [
    "too small",
    { ...blank, sizeBytes: POOL_DISK_BYTES_MIN - 1n },
    "unfit: it has 299 MiB, a pool takes 300 MiB at least",
  ],
  [
    "a pool's",
    { ...oldData, pool: { entry: "e", id: "b0000000-0000-4000-8000-000000000001", isUnfinished: false } },
    "pool: pool b0000000",
  ],
];
for (const [title, disk, wanted] of judged) {
  void t.test(`disk: ${title}: ${wanted}`, async (t) => {
    const verdict = judgeDisk(disk);
    t.equal(verdict.kind === "blank" ? "blank" : `${verdict.kind}: ${verdict.what}`, wanted);
    t.equal(
      mayFormat(disk, "h2", "xfs").kind,
      wanted === "blank" ? "ok" : "refused",
      "only blank is formatted",
    );
  });
}

void t.test("pool add: a disk that is too small for LVM can still be an XFS", async (t) => {
  const small = { ...blank, sizeBytes: (1n << 30n) - 1n };
  t.equal(mayFormat(small, "h2", "xfs").kind, "ok");
  t.match(mayFormat(small, "h2", "lvm-thin"), {
    kind: "refused",
    finding: { message: /a pool on LVM takes 1 GiB at least/ },
  });
  t.equal(mayFormat({ ...small, sizeBytes: 1n << 30n }, "h2", "lvm-thin").kind, "ok");
});

void t.test("pool add: a disk that isn't blank is refused with what is on it, and what to do", async (t) => {
  const decision = mayFormat(oldData, "h2", "lvm-thin");
  t.match(decision, {
    kind: "refused",
    finding: {
      code: "E-DISK-07",
      message: '/dev/sdb on h2 is not blank: LVM VG "old_data" (412 GiB used).',
      safe: "Nothing was changed.",
      do: [
        { command: "weft disk list" },
        { why: "Erase it for good (asks for the VG's name)", command: "weft disk wipe h2:/dev/sdb" },
      ],
    },
  });
});

void t.test("disk wipe: only by the name of what is on it, and never what is used", async (t) => {
  t.strictSame(mayWipe(oldData, "h2", "old_data"), { kind: "ok", value: "erase" });
  for (const name of ["", "old_dat", "OLD_DATA", "sdb", "S64GNE0R1", "old_data "])
    t.match(mayWipe(oldData, "h2", name), { kind: "refused", finding: { code: "E-DISK-04" } }, name);
  t.strictSame(mayWipe(blank, "h2", ""), { kind: "ok", value: "nothing" });
  for (const [disk, code] of [
    [{ ...oldData, uses: ["part of vg-root (lvm)"] }, "E-DISK-03"],
    [{ ...oldData, pool: { entry: "e", id: null, isUnfinished: false } }, "E-DISK-03"],
    [{ ...oldData, readOnly: true }, "E-DISK-05"],
    [{ ...oldData, unread: "I/O error" }, "E-DISK-06"],
  ] as const)
    t.match(mayWipe(disk, "h2", "old_data"), { kind: "refused", finding: { code } });
  const begun = { ...oldData, pool: { entry: "e", id: null, isUnfinished: true } };
  t.strictSame(mayWipe(begun, "h2", "old_data"), { kind: "ok", value: "erase" }, "what was never finished");
});

void t.test(
  "disk wipe: the name is the VG's, a label, the serial number, at last the device's",
  async (t) => {
    const label = { ...blank, edges: null, signatures: [{ type: "ext4", label: "backup" }] };
    t.strictSame(nameOfContent(oldData), { kind: "VG", name: "old_data" });
    t.strictSame(nameOfContent(label), { kind: "label", name: "backup" });
    t.strictSame(nameOfContent({ ...label, signatures: [{ type: "ext4", label: "b\u0007" }] }), {
      kind: "serial",
      name: "S64GNE0R1",
    });
    t.strictSame(nameOfContent({ ...blank, serial: null }), { kind: "device", name: "sdb" });
  },
);
