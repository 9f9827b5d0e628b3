/** Requests in shapes that two parsers read differently, and requests that are too large, at the agents' door. */
import type { Attack, Way } from "../attack.ts";
import { bytesOf, mustBe } from "../attack.ts";
import { knock, request, showing, statusOf } from "../knock.ts";
import type { Knowledge } from "../knowledge.ts";
import { hostOf } from "../knowledge.ts";

const INNER = request("POST", "/v1/members/credentials", "{}");

export const httpAttacks: readonly Attack[] = [
  {
    name: "request-smuggling",
    door: "7400",
    from: "stranger",
    ways: (known) => shapes().flatMap(([label, text]) => atEach(known, label, () => text)),
    control: plainRequest,
  },
  {
    name: "too-large",
    door: "7400",
    from: "stranger",
    ways: (known, random) => sizes(random).flatMap(([label, text]) => atEach(known, label, () => text)),
    control: plainRequest,
  },
  {
    name: "strange-paths",
    door: "7400",
    from: "stranger",
    ways: (known, random) => paths(random).flatMap(([label, text]) => atEach(known, label, () => text)),
    control: plainRequest,
  },
];

/** The one request that everybody may make. */
async function plainRequest(known: Knowledge, local: string): Promise<void> {
  const { address } = hostOf(known, "h1");
  const heard = await knock({ address, port: 7400, local, tls: {}, send: request("GET", "/v1/hello", null) });
  mustBe(statusOf(heard) === 200, "GET /v1/hello");
}

/** Let in: any answer of success, for a request or for what hides in it. */
function atEach(known: Knowledge, label: string, text: () => string): readonly Way[] {
  const { identity } = hostOf(known, "h3");
  return [hostOf(known, "h1"), hostOf(known, "h2")].flatMap(({ name, address }) =>
    [
      { who: "nobody", tls: {} },
      { who: "h3", tls: showing(identity) },
    ].map(({ who, tls }) => ({
      label: `${label}, by ${who} at ${name}`,
      run: async (local: string) => {
        const heard = await knock({ address, port: 7400, local, tls, send: text() });
        return /HTTP\/1\.[01] 2[0-9]{2} /.test(heard.toString("latin1"));
      },
    })),
  );
}

function shapes(): readonly (readonly [string, string])[] {
  const head = "POST /v1/enrol HTTP/1.1\r\nhost: weft\r\ncontent-type: application/json\r\n";
  const hidden = `0\r\n\r\n${INNER}`;
  return [
    [
      "both lengths",
      `${head}content-length: ${hidden.length}\r\ntransfer-encoding: chunked\r\n\r\n${hidden}`,
    ],
    ["two lengths", `${head}content-length: 0\r\ncontent-length: ${INNER.length}\r\n\r\n${INNER}`],
    ["two equal lengths in one", `${head}content-length: 0, 0\r\n\r\n${INNER}`],
    ["a length with a sign", `${head}content-length: +0\r\n\r\n${INNER}`],
    ["a length in hex", `${head}content-length: 0x0\r\n\r\n${INNER}`],
    ["an unknown encoding", `${head}transfer-encoding: xchunked\r\n\r\n${hidden}`],
    ["an encoding twice", `${head}transfer-encoding: chunked, chunked\r\n\r\n${hidden}`],
    ["identity and chunked", `${head}transfer-encoding: identity, chunked\r\n\r\n${hidden}`],
    ["a tab before chunked", `${head}transfer-encoding:\tchunked\r\ncontent-length: 4\r\n\r\n${hidden}`],
    ["a space before the colon", `${head}transfer-encoding : chunked\r\n\r\n${hidden}`],
    ["a folded header", `${head}x: y\r\n transfer-encoding: chunked\r\n\r\n${hidden}`],
    ["bare line feeds", head.replaceAll("\r\n", "\n") + `content-length: 0\n\n${INNER}`],
    ["bare carriage returns", `${head}x: y\rcontent-length: 0\r\n\r\n${INNER}`],
    ["a chunk that lies", `${head}transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n${INNER}`],
    ["a chunk with an extension", `${head}transfer-encoding: chunked\r\n\r\n0;x="\r\n\r\n${INNER}`],
    ["HTTP/0.9", `GET /v1/status\r\n\r\n${INNER}`],
    ["HTTP/2 in the clear", `PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n${INNER}`],
    [
      "an upgrade",
      `GET /v1/status HTTP/1.1\r\nhost: weft\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n${INNER}`,
    ],
    ["CONNECT", `CONNECT 127.0.0.1:7402 HTTP/1.1\r\nhost: weft\r\n\r\n${INNER}`],
  ];
}

function sizes(random: () => number): readonly (readonly [string, string])[] {
  const letters = (count: number): string =>
    bytesOf(random, Math.ceil(count / 2))
      .toString("hex")
      .slice(0, count);
  const body = JSON.stringify({ token: letters(1024 * 1024) });
  return [
    ["a header of 64 KiB", `GET /v1/hello HTTP/1.1\r\nhost: weft\r\nx: ${letters(65_536)}\r\n\r\n`],
    [
      "2,000 headers",
      `GET /v1/hello HTTP/1.1\r\nhost: weft\r\n${Array.from({ length: 2000 }, (_, i) => `x${i}: y\r\n`).join("")}\r\n`,
    ],
    ["a path of 64 KiB", `GET /v1/${letters(65_536)} HTTP/1.1\r\nhost: weft\r\n\r\n`],
    ["a body of 1 MiB", request("POST", "/v1/enrol", body)],
    [
      "a body said to have 1 TiB",
      `POST /v1/enrol HTTP/1.1\r\nhost: weft\r\ncontent-length: 1099511627776\r\n\r\n{}`,
    ],
    [
      "a body of endless chunks",
      `POST /v1/enrol HTTP/1.1\r\nhost: weft\r\ntransfer-encoding: chunked\r\n\r\n${`1000\r\n${letters(4096)}\r\n`.repeat(64)}`,
    ],
    ["brackets 50,000 deep", request("POST", "/v1/enrol", "[".repeat(50_000))],
  ];
}

function paths(random: () => number): readonly (readonly [string, string])[] {
  const number = String(Math.floor(random() * 1e9));
  const parts = [
    "../../v1/members/credentials",
    "%2e%2e/%2e%2e/v1/members/credentials",
    "..%2f..%2fetc%2fpasswd",
    "%00",
    `${number}%0d%0aset-cookie:%20x`,
    "%e2%80%ae",
    "%ff%fe",
    "//v1/members/credentials",
    ".%00./authority",
  ];
  return parts.flatMap((part) => [
    [`GET /v1/volumes/${part}`, request("GET", `/v1/volumes/${part}`, null)] as const,
    [`POST /v1/enrol/${part}`, request("POST", `/v1/enrol/${part}`, "{}")] as const,
  ]);
}
