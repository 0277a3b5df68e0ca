"use strict";
// A text as tokens, one of which is selected by click, arrow keys, Home and End.
{
  const LINES = /(\n)/;

  /** A list of tokens in groups inside a box; it calls chosen(index), counted in the order of adding. */
  QS.TokenList = class {
    constructor(box, chosen) {
      this.box = box;
      this.chosen = chosen;
      this.pieces = [];
      this.current = null;
      this.goal = null;
      box.setAttribute("role", "listbox");
      box.addEventListener("click", (event) => {
        const piece = event.target.closest("[data-index]");
        if (piece) this.choose(Number(piece.dataset.index));
      });
      box.addEventListener("keydown", (event) => this.press(event));
    }

    /** Remove all tokens. */
    clear() {
      this.pieces = [];
      this.current = null;
      this.box.replaceChildren();
    }

    /** Start a group, with or without a name, and return the element to pass to `add`. */
    group(name, label = name) {
      const run = QS.el("span", { class: "run" });
      const group = QS.el("div", { role: "group", "aria-label": label });
      if (name) group.append(QS.el("span", { class: "name", "aria-hidden": "true" }, name));
      group.append(run);
      this.box.append(group);
      return run;
    }

    /** Add a token to a group; a line break is shown as a symbol and also breaks the line. */
    add(run, text) {
      const piece = QS.el("span", {
        class: text === "" ? "piece empty" : "piece",
        role: "option",
        "aria-selected": "false",
        "data-index": this.pieces.length,
        tabindex: this.pieces.length ? "-1" : "0",
      });
      fill(piece, text);
      this.pieces.push(piece);
      run.append(piece);
      return piece;
    }

    /** Set the colour of a token, and the text for screen readers. */
    paint(index, text, step, value) {
      const piece = this.pieces[index];
      if (step === null) delete piece.dataset.step;
      else piece.dataset.step = step;
      piece.setAttribute(
        "aria-label",
        `${text === "" ? "part of a character" : QS.visible(text, { spaces: true })}: ${value}`,
      );
    }

    /** Select a token, and by default move the focus and scroll to it. */
    choose(index, { focus = true } = {}) {
      const piece = this.pieces[index];
      if (!piece) return;
      const before = this.pieces[this.current ?? 0];
      before.setAttribute("aria-selected", "false");
      before.tabIndex = -1;
      piece.setAttribute("aria-selected", "true");
      piece.tabIndex = 0;
      this.current = index;
      this.goal = null;
      if (focus) {
        piece.focus({ preventScroll: true });
        this.reveal(piece);
      }
      this.chosen(index);
    }

    /** Deselect the token; Tab still leads to it. */
    leave() {
      if (this.current !== null) this.pieces[this.current].setAttribute("aria-selected", "false");
    }

    /** Scroll a token into view, moving the page no more than needed. */
    reveal(piece) {
      piece.scrollIntoView({ block: "nearest", behavior: "instant" });
    }

    press(event) {
      if (event.altKey || event.ctrlKey || event.metaKey || !this.pieces.length) return;
      const at = this.current ?? 0;
      const to = {
        ArrowLeft: () => at - 1,
        ArrowRight: () => (this.current === null ? 0 : at + 1),
        ArrowUp: () => this.nextLine(at, -1),
        ArrowDown: () => this.nextLine(at, 1),
        Home: () => 0,
        End: () => this.pieces.length - 1,
        Enter: () => at,
        " ": () => at,
      }[event.key];
      if (!to) return;
      event.preventDefault();
      const next = to();
      const goal = event.key === "ArrowUp" || event.key === "ArrowDown" ? this.goal : null;
      this.choose(next);
      this.goal = goal;
    }

    // Return the token in the line above or below that is closest to where the vertical movement started.
    nextLine(at, direction) {
      const from = this.pieces[at].getClientRects()[0];
      const middle = (box) => box.left + box.width / 2;
      this.goal ??= middle(from);
      let [best, nearest, line] = [at, Infinity, null];
      for (let index = at + direction; this.pieces[index]; index += direction) {
        const box = this.pieces[index].getClientRects()[0];
        if (Math.abs(box.top - from.top) < from.height / 2) continue;
        if (line !== null && Math.abs(box.top - line) > from.height / 2) break;
        line ??= box.top;
        const distance = Math.abs(middle(box) - this.goal);
        if (distance < nearest) [best, nearest] = [index, distance];
      }
      return best;
    }
  };

  function fill(piece, text) {
    for (const part of text.split(LINES)) {
      if (part === "\n") piece.append(QS.el("span", { class: "mark" }, "↵"), document.createElement("br"));
      else if (part !== "") piece.append(QS.visible(part));
    }
  }
}
