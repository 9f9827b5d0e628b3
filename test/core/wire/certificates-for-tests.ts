/** Authorities and certificates for tests, made by the `openssl` program in a directory of the test's own. */
import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

export type Leaf = {
  readonly cert: string;
  readonly key: string;
  /** Of a file with the certificate, then its key: as etcd is given it. */
  readonly path: string;
};

export type LeafOptions = {
  /** As OpenSSL writes them: `IP:127.0.0.1,URI:weft://c/host/h`. */
  readonly names: string;
  /** Negative: it has expired. */
  readonly days?: number;
};

type Scope = { readonly teardown: (fn: () => Promise<void>) => void };

const CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

export class TestAuthority {
  readonly cert: string;
  /** Of its certificate. */
  readonly path: string;
  readonly #directory: string;
  #count = 0;

  private constructor(directory: string, cert: string) {
    this.#directory = directory;
    this.path = join(directory, "ca.pem");
    this.cert = cert;
  }

  static async make(t: Scope, name: string): Promise<TestAuthority> {
    const directory = await mkdtemp(join(tmpdir(), "weft-authority-"));
    t.teardown(() => rm(directory, { recursive: true, force: true }));
    const files = ["-keyout", "ca.key", "-out", "ca.pem"];
    await openssl(directory, ["req", "-x509", ...CURVE, ...files, "-subj", `/CN=${name}`, "-days", "2"]);
    return new TestAuthority(directory, await readFile(join(directory, "ca.pem"), "utf8"));
  }

  /** For servers and clients. */
  async issue({ names, days = 2 }: LeafOptions): Promise<Leaf> {
    this.#count += 1;
    const serial = String(this.#count);
    const at = (ending: string): string => `leaf-${serial}.${ending}`;
    const directory = this.#directory;
    const extensions = `subjectAltName=${names}\nextendedKeyUsage=serverAuth,clientAuth\n`;
    await writeFile(join(directory, at("ext")), extensions);
    const asked = ["-keyout", at("key"), "-out", at("csr"), "-subj", `/CN=leaf ${serial}`];
    await openssl(directory, ["req", ...CURVE, ...asked]);
    const by = ["-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", serial, "-days", String(days)];
    const files = ["-in", at("csr"), "-extfile", at("ext"), "-out", at("crt")];
    await openssl(directory, ["x509", "-req", ...by, ...files]);
    const [cert, key] = await Promise.all(
      ["crt", "key"].map((ending) => readFile(join(directory, at(ending)), "utf8")),
    );
    const path = join(directory, at("pem"));
    await writeFile(path, `${cert}${key}`, { mode: 0o600 });
    return { cert: cert ?? "", key: key ?? "", path };
  }
}

async function openssl(cwd: string, words: readonly string[]): Promise<void> {
  await run("openssl", words, { cwd });
}
