"use strict";
// A table to sort, filter and page through.
{
  const ROWS_AT_ONCE = 100;

  /**
   * columns: [{name, value(record), show(value, record) or none, number: bool, filtered: bool, kind: class of its cells,
   * exported: {name: value(record)} to export other columns instead}]; the first column is a button that selects the
   * record. records: one per row, in their order. Filtering, sorting and export use the raw values; `show` formats them.
   */
  QS.Table = class {
    constructor(table, columns, records, selected) {
      Object.assign(this, { columns, records, selected, filter: "", only: null, sorted: 0, direction: 1, from: 0 });
      this.haystacks = null;
      this.heads = columns.map((column, index) => {
        const button = QS.el("button", { type: "button" }, column.name);
        button.addEventListener("click", () => this.sort(index));
        return QS.el("th", { scope: "col", class: column.number ? "number" : null }, button);
      });
      this.body = QS.el("tbody");
      this.body.addEventListener("click", (event) => {
        const row = event.target.closest("tr");
        if (row) this.selected(this.found[this.from + row.sectionRowIndex]);
      });
      table.append(QS.el("thead", {}, QS.el("tr", {}, ...this.heads)), this.body);
      this.update();
    }

    /** Sort by a column, or reverse the order if it is sorted by that one already. */
    sort(index) {
      this.direction = index === this.sorted ? -this.direction : 1;
      this.sorted = index;
      this.update();
    }

    /** Show only records with a text in one of the filtered columns, for which `only` is true if given. */
    keep(text, only) {
      this.filter = text.toLowerCase();
      this.only = only;
      this.update();
    }

    /** Move forward by a number of pages. */
    turn(pages) {
      this.from = Math.max(0, Math.min(this.lastFrom, this.from + pages * ROWS_AT_ONCE));
      this.draw();
    }

    get lastFrom() {
      return Math.max(0, Math.ceil(this.found.length / ROWS_AT_ONCE) - 1) * ROWS_AT_ONCE;
    }

    /** Return all records that pass the filter, as rows for `QS.csv`. */
    rows() {
      const exported = this.columns.flatMap((column) => Object.entries(column.exported ?? { [column.name]: column.value }));
      return [exported.map(([name]) => name), ...this.found.map((record) => exported.map(([, value]) => value(record)))];
    }

    update() {
      this.haystacks ??= new Map(this.records.map((record) => [record, this.haystack(record)]));
      const { value } = this.columns[this.sorted];
      this.found = this.records.filter(
        (record) =>
          (!this.only || this.only(record)) && (!this.filter || this.haystacks.get(record).includes(this.filter)),
      );
      const keys = new Map(this.found.map((record) => [record, value(record)]));
      this.found.sort((a, b) => order(keys.get(a), keys.get(b), this.direction));
      this.heads.forEach((head, index) => {
        if (index !== this.sorted) head.removeAttribute("aria-sort");
        else head.setAttribute("aria-sort", this.direction > 0 ? "ascending" : "descending");
      });
      this.from = 0;
      this.draw();
    }

    haystack(record) {
      const texts = this.columns.filter((column) => column.filtered).map((column) => column.value(record) ?? "");
      return [...texts, ...texts.map((text) => QS.visible(text, { spaces: true }))].join("\n").toLowerCase();
    }

    draw() {
      const rows = this.found.slice(this.from, this.from + ROWS_AT_ONCE).map((record) => {
        const cells = this.columns.map((column, index) => {
          const value = column.value(record);
          const shown = column.show ? column.show(value, record) : value === null ? "–" : String(value);
          const content = index === 0 ? QS.el("button", { type: "button", class: "pick" }, shown) : shown;
          return QS.el("td", { class: column.number ? "number" : (column.kind ?? null) }, content);
        });
        return QS.el("tr", {}, ...cells);
      });
      this.body.replaceChildren(...rows);
      this.drawn?.(this.from, this.from + rows.length, this.found.length);
    }
  };

  // Nulls come last in both directions.
  function order(a, b, direction) {
    if (a === null || b === null) return Number(a === null) - Number(b === null);
    if (typeof a === "string") return direction * (a < b ? -1 : Number(a > b));
    return direction * (a - b);
  }
}
