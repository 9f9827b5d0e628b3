/**
 * Values of the store that only show something or only count if they can be read.
 *
 * Must always hold: what is not JSON, or not of the wanted shape, reads as nothing and fails nothing.
 */
import type { z } from "zod";

export function readValue<T extends z.ZodType>(schema: T, text: string): z.output<T> | null {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    return null;
  }
  const parsed = schema.safeParse(json);
  return parsed.success ? parsed.data : null;
}
