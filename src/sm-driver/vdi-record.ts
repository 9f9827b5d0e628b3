/** A disk of the store in the words of XAPI's record of it. */
import type { VdiAnswer } from "../core/wire/sr-api.ts";
import type { VdiIntroduce } from "./xapi-records.ts";

type Introduction = {
  readonly srRef: string;
  /** XAPI's ref of the disk that it is a snapshot of; null: of none that XAPI knows. */
  readonly snapshotOf: string | null;
  /** Of a disk that holds a pool's database: the pool's ref; null: it holds none. */
  readonly metadataOfPool: string | null;
};

export function introductionOf(vdi: VdiAnswer, known: Introduction): VdiIntroduce {
  const { uuid, label, description, type, sharable, readOnly, managed, size, physicalUtilisation } = vdi;
  const { isSnapshot, snapshotTime, cbt, smConfig } = vdi;
  return {
    uuid,
    location: uuid,
    label,
    description,
    type,
    sharable,
    readOnly,
    managed,
    size,
    physicalUtilisation,
    isSnapshot,
    snapshotTime: snapshotTime === null ? null : new Date(snapshotTime),
    cbt,
    smConfig,
    ...known,
  };
}
