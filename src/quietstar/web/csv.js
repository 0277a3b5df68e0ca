"use strict";
// Exports a table as a CSV file (RFC 4180) in which no spreadsheet sees a formula.
{
  const FORMULA = /^[=+\-@\t\r\n]/;

  function cell(value) {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = QS.symbols(String(value), "\n\t");
    const safe = FORMULA.test(text) ? `'${text}` : text;
    return /[",\r\n\t]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  /** Return rows of texts, numbers and nulls as CSV. */
  QS.csv = (rows) => rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");

  /** Let the user download a text as a file, in UTF-8 with a byte order mark. */
  QS.save = (name, text) => {
    const address = URL.createObjectURL(new Blob(["\uFEFF", text], { type: "text/csv;charset=utf-8" }));
    const link = QS.el("a", { href: address, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };
}
