"use strict";
// Helpers of the report and the page: elements, visible text, numbers, theme.
const QS = {};
{
  const N_STEPS = 5;
  const HIDDEN = /[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;
  const BLANK = /\p{Zs}/gu;
  // Names of control characters, since few fonts have Unicode's pictures of them.
  const CONTROLS = (
    "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI " +
    "DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US"
  ).split(" ");

  /** Return an element with attributes and children; strings among the children become text. */
  QS.el = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  };

  /** Return the element with that id. */
  QS.get = (id) => document.getElementById(id);

  const code = (character) => `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;

  function symbol(character) {
    const point = character.codePointAt(0);
    if (character === "\n") return "↵";
    if (character === "\t") return "⇥";
    return CONTROLS[point] ? `⟨${CONTROLS[point]}⟩` : code(character);
  }

  // Joiners within an emoji, and variation selectors, are invisible but have an effect.
  function hasEffect(character, offset, whole) {
    if (offset === 0) return false;
    if (character === "\uFE0E" || character === "\uFE0F") return true;
    const next = whole.codePointAt(offset + 1);
    return (
      character === "\u200D" && next !== undefined && /\p{Extended_Pictographic}/u.test(String.fromCodePoint(next))
    );
  }

  /** Replace controls, bidirectional marks and invisible characters by symbols, except those to keep. */
  QS.symbols = (text, keep = "") =>
    text.replace(HIDDEN, (character, offset, whole) =>
      keep.includes(character) || hasEffect(character, offset, whole) ? character : symbol(character),
    );

  /** The same for display: a leading accent gets a base character; with `spaces`, spaces become symbols, too. */
  QS.visible = (text, { spaces = false } = {}) => {
    const shown = QS.symbols(text);
    const whole = /^\p{M}/u.test(shown) ? `◌${shown}` : shown;
    return spaces ? whole.replace(BLANK, (blank) => (blank === " " ? "␣" : code(blank))) : whole;
  };

  /** Return an element for one token, with visible spaces; a part of a character is shown as a thin mark. */
  QS.token = (text) => QS.el("span", { class: "token" }, text === "" ? "▏" : QS.visible(text, { spaces: true }));

  /** Format a number with `digits` decimals, or as 2.7e-7; with `sign`, show a plus, too. A missing one is a dash. */
  QS.number = (value, { digits = 3, sign = false } = {}) => {
    if (value === null || value === undefined) return "–";
    const absolute = Math.abs(value);
    const fixed = Number(absolute.toFixed(Math.min(digits, 20)));
    const isOdd = fixed >= 1e6 || (absolute > 0 && fixed < 0.999 * 10 ** -digits);
    const size = isOdd ? absolute.toExponential(1) : absolute.toFixed(digits);
    if (value === 0) return size;
    return (value < 0 ? "−" : sign ? "+" : "") + size;
  };

  /** Format an estimate with its 95 % interval, if it has one. */
  QS.interval = (estimate, show = QS.number) => {
    if (!estimate) return "–";
    const [value, low, high] = [estimate.value, estimate.low, estimate.high].map((each) => show(each));
    return estimate.low === null ? value : `${value} (${low} to ${high})`;
  };

  /** Return the ends of an estimate's interval, or the value itself if it has none. */
  QS.ends = ({ value, low, high }) => [low ?? value, high ?? value];

  /** Format a number with its sign, for `QS.interval`. */
  QS.signed = (value) => QS.number(value, { sign: true });

  /** Format a share from 0 to 1, for `QS.interval`. */
  QS.share = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);

  /** Format a log-probability as a percentage. */
  QS.percent = (logprob) => {
    if (typeof logprob !== "number") return "–";
    const share = 100 * Math.exp(logprob);
    return share < 0.1 ? "<0.1 %" : `${share.toFixed(share < 99.95 ? 1 : 0)} %`;
  };

  /** Return a value's step on the colour scale, "m5" to "5"; null for no value. */
  QS.step = (value, limit) => {
    if (value === null || value === undefined) return null;
    const step = Math.round(N_STEPS * Math.min(1, Math.abs(value) / limit));
    return value < 0 && step ? `m${step}` : String(step);
  };

  /** Show the colour scale and its limits in a box. */
  QS.legend = (box, limit, low, high) => {
    const swatches = [];
    for (let step = -N_STEPS; step <= N_STEPS; step++) {
      swatches.push(QS.el("i", { "data-step": QS.step(step, N_STEPS) }));
    }
    const end = (sign, label) =>
      QS.el("span", {}, `${sign}${QS.number(limit, { digits: limit < 0.1 ? 3 : 2 })} ${label}`);
    box.replaceChildren(
      end("−", low),
      QS.el("span", { class: "swatches", "aria-hidden": "true" }, ...swatches),
      end("+", high),
    );
  };

  /** Add a switch between light and dark colours to the element `theme`; the browser remembers the choice. */
  QS.theme = () => {
    const store = (choice) => {
      try {
        localStorage.setItem("theme", choice);
      } catch {
        // a document opened from disk may have no storage
      }
    };
    const apply = (choice) => {
      if (choice === "auto") delete document.documentElement.dataset.theme;
      else document.documentElement.dataset.theme = choice;
    };
    let choice = "auto";
    try {
      choice = localStorage.getItem("theme") ?? "auto";
    } catch {
      // as above
    }
    const choices = ["auto", "light", "dark"];
    if (!choices.includes(choice)) choice = "auto";
    const radios = choices.map((value) => {
      const radio = QS.el("input", { type: "radio", name: "theme", value, checked: value === choice });
      radio.addEventListener("change", () => {
        apply(value);
        store(value);
      });
      return QS.el("label", {}, radio, ` ${value}`);
    });
    QS.get("theme").append(QS.el("legend", {}, "Colours"), ...radios);
    apply(choice);
  };
}
