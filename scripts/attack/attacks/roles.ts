/**
 * Every request of the table by everybody who may not make it. It is generated from the table: a new route is attacked by
 * standing there.
 */
import { mayDo } from "../../../src/core/model/roles.ts";
import type { Principal, Right } from "../../../src/core/model/roles.ts";
import { methodAndPath, routeNames, routes } from "../../../src/core/wire/routes.ts";
import type { Attack, Way } from "../attack.ts";
import { bytesOf, mustBe } from "../attack.ts";
import { knock, request, showing, statusOf } from "../knock.ts";
import type { Knowledge } from "../knowledge.ts";
import { hostOf } from "../knowledge.ts";

type Asker = {
  readonly who: string;
  /** After `Bearer`; null: none is shown. */
  readonly token: string | null;
  readonly isHost: boolean;
  /** Whether it has this right by itself. */
  readonly has: (right: Right) => boolean;
};

const nothing = (): boolean => false;
/** Not known, not allowed. Whether what it names is there is looked at by nobody before. */
const REFUSED = new Set([401, 403]);
const BODIES: Readonly<Record<string, unknown>> = {
  "POST /v1/volumes/:ref/attach": { steal: true },
  "POST /v1/volumes/:ref/detach": { abandon: true },
};

export const roleAttacks: readonly Attack[] = [
  {
    name: "role",
    door: "7400",
    from: "stranger",
    ways: (known, random) =>
      askersOf(known, random).flatMap((asker) =>
        routeNames.filter((name) => !asker.has(rightOf(name))).map((name): Way => wayOf(known, asker, name)),
      ),
    control: async (known, local) =>
      mustBe(
        (await ask(known, local, request("GET", "/v1/status", null), known.apiTokens.viewer, false)) === 200,
        "a viewer sees the status",
      ),
  },
];

/** With the body of `BODIES`, where it asks for more. */
function rightOf(name: (typeof routeNames)[number]): Right {
  const { right, raise } = routes[name];
  return name in BODIES && raise !== null ? raise(BODIES[name]) : right;
}

function askersOf(known: Knowledge, random: () => number): readonly Asker[] {
  const { viewer, operator, expired, revoked } = known.apiTokens;
  const of = (role: "viewer" | "operator"): Asker["has"] => {
    const principal: Principal = { kind: "token", id: "00000000", name: role, role, volumes: null };
    return (right) => mayDo(principal, right, { kind: "cluster" });
  };
  const one = (who: string, token: string | null, has: Asker["has"] = nothing): Asker => ({
    who,
    token,
    has,
    isHost: false,
  });
  // The same name, another secret.
  const guessed = viewer.slice(0, viewer.lastIndexOf(".") + 1) + bytesOf(random, 32).toString("base64url");
  return [
    one("nobody", null),
    one("a viewer", viewer, of("viewer")),
    one("an operator", operator, of("operator")),
    one("an expired admin", expired),
    one("a revoked admin", revoked),
    one("a guess", guessed),
    one("noise", bytesOf(random, 40).toString("hex")),
    { who: "a host", token: null, isHost: true, has: (right) => right === "open" || right === "host" },
  ];
}

function wayOf(known: Knowledge, asker: Asker, name: (typeof routeNames)[number]): Way {
  const { method, path } = methodAndPath(name);
  const target = path.replace(":rid", "0").replace(":ref", path.includes("/hosts/") ? "h2" : "victim");
  const body = routes[name].request === null && method === "GET" ? null : JSON.stringify(BODIES[name] ?? {});
  return {
    label: `${name} by ${asker.who}`,
    run: async (local) => {
      const status = await ask(known, local, request(method, target, body), asker.token, asker.isHost);
      // Too many wrong tokens from here: it was not judged by its right.
      if (status === null) throw new Error(`${name} by ${asker.who} was not answered`);
      if (status === 429) throw new Error(`${name} by ${asker.who} was not judged: too many tries`);
      const isServed = routes[name].right !== "local-root";
      return isServed ? !REFUSED.has(status) : status !== 404 && !REFUSED.has(status);
    },
  };
}

async function ask(
  known: Knowledge,
  local: string,
  text: string,
  token: string | null,
  isHost: boolean,
): Promise<number | null> {
  const { address } = hostOf(known, "h1");
  const line = token === null ? "" : `authorization: Bearer ${token}\r\n`;
  const tls = isHost ? showing(hostOf(known, "h3").identity) : {};
  const send = text.replace("\r\n", `\r\n${line}`);
  return statusOf(await knock({ address, port: 7400, local, tls, send }));
}
