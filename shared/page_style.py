"""The style sheet of every page: light and dark by the reader's setting, and fit for print."""

STYLE = """
:root { color-scheme: light dark;
  --ink: #1b2430; --soft: #5b6775; --line: #d9dfe6; --paper: #ffffff; --panel: #f5f7fa;
  --accent: #1f6fb2; --second: #c8641b; --good: #1a7f4b; --good-bg: #dff3e7; --bad: #b3261e; --bad-bg: #fbe3e1;
  --warn-bg: #fff4d6; --warn-line: #e0b84c; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e3e8ee; --soft: #9aa7b5; --line: #323c48; --paper: #14191f; --panel: #1c232b;
  --accent: #6db3f2; --second: #f0a060; --good: #6fd39b; --good-bg: #173626; --bad: #ff9a91; --bad-bg: #43201d;
  --warn-bg: #33290f; --warn-line: #8a6d1f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 72rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 48rem; }
.soft, figcaption, caption { color: var(--soft); }
.notice { margin: 1rem 0; padding: .6rem .9rem; border: 1px solid var(--warn-line); border-left-width: 5px;
  border-radius: 6px; background: var(--warn-bg); }
.notice p { margin: .1rem 0; max-width: none; }
nav { margin: 1rem 0; font-size: .9rem; display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
nav a { white-space: nowrap; }
a { color: var(--accent); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .6rem 0 1rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .3rem; font-size: .9rem; }
th, td { padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; } td.number, th.number { text-align: right; }
td.pass { color: var(--good); font-weight: 600; } td.fail { color: var(--bad); font-weight: 600; }
.grid { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(var(--tile, 8rem), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figure img { display: block; width: 100%; background: #000; border-radius: 3px; image-rendering: pixelated; }
figcaption { font-size: .8rem; line-height: 1.35; padding-top: .2rem; }
.set { display: grid; grid-auto-flow: column; grid-auto-columns: 1fr; gap: .3rem; }
.card { margin: .8rem 0; padding: .8rem 1rem; background: var(--panel); border-radius: 8px; break-inside: avoid; }
.sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1.2rem; }
.sides.pictured { grid-template-columns: 8rem repeat(auto-fit, minmax(13rem, 1fr)); }
.sides h4 { margin: 0 0 .2rem; font-size: .8rem; color: var(--soft); font-weight: 600; }
ins { text-decoration: none; background: var(--bad-bg); color: var(--bad); border-radius: 3px; }
del { text-decoration: underline dotted; background: var(--good-bg); color: var(--good); border-radius: 3px; }
.chips { margin: .5rem 0 0; font-size: .82rem; }
.chip { display: inline-block; padding: 0 .5rem; margin: .1rem .3rem .1rem 0; border-radius: 1rem;
  border: 1px solid currentColor; }
.chip.hit { color: var(--good); } .chip.missed, .chip.invented { color: var(--bad); }
svg text { fill: var(--soft); font: 10px system-ui, sans-serif; } svg .frame { fill: none; stroke: var(--line); }
svg .training { stroke: var(--accent); } svg .validation { stroke: var(--second); }
svg .chance { stroke: var(--soft); } svg .curve { stroke: var(--accent); }
svg .training, svg .validation, svg .curve, svg .chance { fill: none; stroke-width: 1.4; }
svg .chance { stroke-dasharray: 4 3; }
.bar { position: relative; width: 9rem; height: .55rem; margin-top: .45rem;
  background: var(--line); border-radius: 3px; }
.bar i { position: absolute; inset: 0 auto 0 0; background: var(--accent); border-radius: 3px; }
.bar b { position: absolute; top: -.2rem; bottom: -.2rem; width: 2px; background: var(--ink); }
footer { margin-top: 3rem; padding-top: .8rem; border-top: 1px solid var(--line); font-size: .85rem; }
@media print { :root { color-scheme: light; } body { max-width: none; padding: 0; font-size: 11px; }
  nav { display: none; } h2 { break-after: avoid; } .card, table, figure { break-inside: avoid; } }
"""
