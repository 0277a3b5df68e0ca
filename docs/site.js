// What the theme adds to a page after it has loaded: buttons that copy, and tables that scroll on their own.
new MutationObserver(() => {
  document.querySelectorAll("nav.md-code__nav").forEach((nav, at) => (nav.ariaLabel = `Code ${at + 1}`));
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) box.tabIndex = 0;
}).observe(document.documentElement, { childList: true, subtree: true });
