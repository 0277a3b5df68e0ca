// Names for the buttons that copy, and keys for the tables and diagrams that scroll on their own.
new MutationObserver(() => {
  document.querySelectorAll("nav.md-code__nav").forEach((nav, at) => (nav.ariaLabel = `Code ${at + 1}`));
  for (const box of document.querySelectorAll('.md-typeset__scrollwrap, p:has(> img[src$=".svg"])')) box.tabIndex = 0;
}).observe(document.documentElement, { childList: true, subtree: true });
