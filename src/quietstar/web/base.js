"use strict";
// What report and page share: elements, text made visible, numbers, theme.
const QS = {};
{
  const N_STEPS = 5;
  const HIDDEN = /[\p{C}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;
  const BLANK = /\p{Zs}/gu;
  // Few fonts hold the pictures of these that Unicode has.
  const CONTROLS = (
    "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI " +
    "DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US"
  ).split(" ");

  /** An element with attributes and children; strings among the children become text. */
  QS.el = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  };

  /** The element of that id. */
  QS.get = (id) => document.getElementById(id);

  const code = (character) => `⟨U+${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;

  function symbol(character) {
    const point = character.codePointAt(0);
    if (character === "\n") return "↵";
    if (character === "\t") return "⇥";
    return CONTROLS[point] ? `⟨${CONTROLS[point]}⟩` : code(character);
  }

  // Joiners inside an emoji, and selectors of how a character looks, do what they are for.
  function isAtWork(character, offset, whole) {
    if (offset === 0) return false;
    if (character === "\uFE0E" || character === "\uFE0F") return true;
    const next = whole.codePointAt(offset + 1);
    return (
      character === "\u200D" && next !== undefined && /\p{Extended_Pictographic}/u.test(String.fromCodePoint(next))
    );
  }

  /** Text with a symbol for every control, bidirectional mark and invisible character but those to keep. */
  QS.symbols = (text, keep = "") =>
    text.replace(HIDDEN, (character, offset, whole) =>
      keep.includes(character) || isAtWork(character, offset, whole) ? character : symbol(character),
    );

  /** The same to be looked at: an accent has something to stand on; spaces: these are symbols too. */
  QS.visible = (text, { spaces = false } = {}) => {
    const shown = QS.symbols(text);
    const whole = /^\p{M}/u.test(shown) ? `◌${shown}` : shown;
    return spaces ? whole.replace(BLANK, (blank) => (blank === " " ? "␣" : code(blank))) : whole;
  };

  /** Text as one token, spaces visible; a token that is only part of a character is a thin mark. */
  QS.token = (text) => QS.el("span", { class: "token" }, text === "" ? "▏" : QS.visible(text, { spaces: true }));

  /** A number with so many digits after the point, or as 2.7e-7; sign: with a plus too. A dash where there is none. */
  QS.number = (value, { digits = 3, sign = false } = {}) => {
    if (value === null || value === undefined) return "–";
    const absolute = Math.abs(value);
    const fixed = Number(absolute.toFixed(Math.min(digits, 20)));
    const isOdd = fixed >= 1e6 || (absolute > 0 && fixed < 0.999 * 10 ** -digits);
    const size = isOdd ? absolute.toExponential(1) : absolute.toFixed(digits);
    if (value === 0) return size;
    return (value < 0 ? "−" : sign ? "+" : "") + size;
  };

  /** An estimate with its 95 % interval, where it is of enough positions to have one. */
  QS.interval = (estimate, show = QS.number) => {
    if (!estimate) return "–";
    const [value, low, high] = [estimate.value, estimate.low, estimate.high].map((each) => show(each));
    return estimate.low === null ? value : `${value} (${low} to ${high})`;
  };

  /** Where an estimate's interval ends; the value itself where it is of too few positions to have one. */
  QS.ends = ({ value, low, high }) => [low ?? value, high ?? value];

  /** A number with its sign, for `QS.interval`. */
  QS.signed = (value) => QS.number(value, { sign: true });

  /** A share from 0 to 1, for `QS.interval`. */
  QS.share = (value) => (value === null ? "–" : `${(100 * value).toFixed(1)} %`);

  /** A log-probability as a share. */
  QS.percent = (logprob) => {
    if (typeof logprob !== "number") return "–";
    const share = 100 * Math.exp(logprob);
    return share < 0.1 ? "<0.1 %" : `${share.toFixed(share < 99.95 ? 1 : 0)} %`;
  };

  /** The step of the colour scale for a value: "m5" to "5"; null where there is no value. */
  QS.step = (value, limit) => {
    if (value === null || value === undefined) return null;
    const step = Math.round(N_STEPS * Math.min(1, Math.abs(value) / limit));
    return value < 0 && step ? `m${step}` : String(step);
  };

  /** The scale with its limits in a row. */
  QS.legend = (box, limit, low, high) => {
    const swatches = [];
    for (let step = -N_STEPS; step <= N_STEPS; step++) {
      swatches.push(QS.el("i", { "data-step": QS.step(step, N_STEPS) }));
    }
    const end = (sign, words) =>
      QS.el("span", {}, `${sign}${QS.number(limit, { digits: limit < 0.1 ? 3 : 2 })} ${words}`);
    box.replaceChildren(
      end("−", low),
      QS.el("span", { class: "swatches", "aria-hidden": "true" }, ...swatches),
      end("+", high),
    );
  };

  /** Put a switch between light and dark colours into the element `theme`; the choice is remembered. */
  QS.theme = () => {
    const store = (choice) => {
      try {
        localStorage.setItem("theme", choice);
      } catch {
        // a document from disk may have no memory
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
