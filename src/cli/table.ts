/**
 * A table for people: columns as wide as their widest cell, two spaces between, no lines.
 *
 * Must always hold: a cell is one line, whatever a name or a reason contains; no blanks at the end of a line.
 */
export type Column<Row> = {
  readonly title: string;
  readonly of: (row: Row) => string;
  readonly right?: true;
};

export function table<Row>(rows: readonly Row[], columns: readonly Column<Row>[]): string {
  const cells = [
    columns.map((column) => column.title),
    ...rows.map((row) => columns.map((column) => oneLine(column.of(row)))),
  ];
  const widths = columns.map((_, index) => Math.max(...cells.map((row) => width(row[index] ?? ""))));
  return cells
    .map((row) =>
      row
        .map((cell, index) => pad(cell, widths[index] ?? 0, columns[index]?.right === true))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

/** What came from elsewhere is printed without anything that moves the cursor or colours the terminal. */
export function oneLine(text: string): string {
  // oxlint-disable-next-line no-control-regex -- control characters are what is looked for
  return text.replaceAll(/[\u0000-\u001f\u007f-\u009f\u2028\u2029]+/g, " ");
}

function pad(text: string, columns: number, right: boolean): string {
  const blanks = " ".repeat(Math.max(0, columns - width(text)));
  return right ? blanks + text : text + blanks;
}

function width(text: string): number {
  return Array.from(text).length;
}
