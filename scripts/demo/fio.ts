/** fio on a volume's NBD socket, and what it reports. */
import { z } from "zod";

/** Bytes of one request. */
export const BLOCK = 16 * 1024;

export type Load = {
  readonly name: string;
  readonly socket: string;
  readonly offset: number;
  readonly size: number;
  /** Bytes a second; null: as fast as it goes. */
  readonly rate: number | null;
  /** Writes its region once and reads it back against the checksums; otherwise writes until it is refused. */
  readonly kind: "write-and-verify" | "write-until-refused";
};

export function fioCommand(load: Load): readonly string[] {
  const common = [
    "fio",
    `--name=${load.name}`,
    "--ioengine=nbd",
    `--uri=nbd+unix:///?socket=${load.socket}`,
    "--rw=randwrite",
    `--bs=${BLOCK}`,
    "--iodepth=16",
    `--offset=${load.offset}`,
    `--size=${load.size}`,
    "--randrepeat=0",
    "--output-format=json",
    ...(load.rate === null ? [] : [`--rate=,${load.rate}`]),
  ];
  switch (load.kind) {
    case "write-and-verify":
      return [...common, "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0"];
    case "write-until-refused":
      return [...common, "--time_based", "--runtime=120"];
  }
}

const direction = z.object({ io_bytes: z.number(), clat_ns: z.object({ max: z.number() }) });
const report = z.object({
  jobs: z.array(z.object({ error: z.number(), read: direction, write: direction })).min(1),
});

export type FioFigures = {
  /** An errno, 0 for none. A checksum that does not match is 84. */
  readonly error: number;
  readonly writtenBytes: number;
  readonly readBytes: number;
  /** The longest that one request took. */
  readonly stallMs: number;
};

/** fio writes notes before its JSON when a server goes away. */
export function fioFigures(output: string): FioFigures {
  const start = output.search(/^\{/m);
  const [job] = report.parse(JSON.parse(start < 0 ? "" : output.slice(start))).jobs;
  if (job === undefined) throw new Error("fio reported no job");
  const stallNs = Math.max(job.read.clat_ns.max, job.write.clat_ns.max);
  return {
    error: job.error,
    writtenBytes: job.write.io_bytes,
    readBytes: job.read.io_bytes,
    stallMs: Math.round(stallNs / 1e6),
  };
}
