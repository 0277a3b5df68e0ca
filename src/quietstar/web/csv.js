"use strict";
// A table as a CSV file (RFC 4180) that no spreadsheet takes for formulas.
{
  const FORMULA = /^[=+\-@\t\r\n]/;

  function cell(value) {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = QS.symbols(String(value), "\n\t");
    const safe = FORMULA.test(text) ? `'${text}` : text;
    return /[",\r\n\t]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  /** Rows of texts, numbers and nulls as CSV. */
  QS.csv = (rows) => rows.map((row) => `${row.map(cell).join(",")}\r\n`).join("");

  /** Hand a text to the user as a file, as UTF-8 with a byte order mark. */
  QS.save = (name, text) => {
    const address = URL.createObjectURL(new Blob(["\uFEFF", text], { type: "text/csv;charset=utf-8" }));
    const link = QS.el("a", { href: address, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(address), 1000);
  };
}
