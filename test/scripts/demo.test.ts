/** The demo's verdict: a figure that is misread, or a check that is not counted, would make it say yes too easily. */
import t from "tap";

import { fioCommand, fioFigures } from "../../scripts/demo/fio.ts";
import { Ledger } from "../../scripts/demo/ledger.ts";

/** What fio 3.33 prints when its server goes away, shortened. */
const refused = `fio: connected to NBD server
fio: pid=7411, err=-1/file:ioengines.c:320, func=get_events, error=Unknown error -1
{
  "fio version" : "fio-3.33",
  "jobs" : [
    {
      "jobname" : "b",
      "error" : 4294967295,
      "read" : { "io_bytes" : 4096, "clat_ns" : { "min" : 0, "max" : 9000000 } },
      "write" : { "io_bytes" : 1008222208, "clat_ns" : { "min" : 0, "max" : 1812345678 } }
    }
  ]
}
`;

await t.test("demo: fio's figures are found behind its notes", async (t) => {
  const found = { error: 4294967295, writtenBytes: 1008222208, readBytes: 4096, stallMs: 1812 };
  t.strictSame(fioFigures(refused), found);
  t.throws(() => fioFigures("fio: engine nbd not loadable\n"));
  t.throws(() => fioFigures('{ "jobs" : [] }\n'));
});

await t.test("demo: a load that verifies asks for checksums, one that fights for time", async (t) => {
  const load = { name: "load", socket: "/run/a.sock", offset: 0, size: 4096, rate: null } as const;
  t.ok(fioCommand({ ...load, kind: "write-and-verify" }).includes("--verify=crc32c"));
  t.ok(fioCommand({ ...load, kind: "write-until-refused" }).includes("--time_based"));
  t.ok(fioCommand({ ...load, rate: 10, kind: "write-and-verify" }).includes("--rate=,10"));
});

await t.test("demo: one failed check, or none at all, is not a success", async (t) => {
  const ledger = new Ledger((line) => t.match(line, /first|second/));
  t.equal(ledger.ok, false);
  ledger.check("first", true, "held");
  t.equal(ledger.ok, true);
  ledger.check("second", false, "did not hold");
  t.equal(ledger.ok, false);
  t.match(ledger.table(), "1 of 2");
});
