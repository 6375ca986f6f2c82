"""How a report looks: light and dark, on a screen, a telephone and paper."""

STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --faint: #5a646e; --page: #fff; --card: #f4f6f8; --rule: #d8dee4;
  --c0: #0b62c4; --c1: #b3420b; --level: #6b7680; --warn: #8a4b00; --warn-card: #fff3dc; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --faint: #9aa5b0; --page: #14181c; --card: #1e242a;
  --rule: #38414a; --c0: #6cb0ff; --c1: #ff9d6b; --level: #8d99a4; --warn: #ffcf85; --warn-card: #3a2b12; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-bottom: 1px solid var(--rule); padding-bottom: .25rem; }
p { margin: .25rem 0; }
.faint, figcaption, .legend, dt { color: var(--faint); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .5rem; margin: 1rem 0; }
.tiles div { background: var(--card); border-radius: .4rem; padding: .5rem .75rem; }
.tiles dt { font-size: .8rem; }
.tiles dd { margin: 0; font-size: 1.1rem; font-weight: 600; }
.warn { background: var(--warn-card); color: var(--warn); border-radius: .4rem; padding: .5rem .75rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; min-width: 0; }
figcaption { font-weight: 600; }
.plot { position: relative; margin: .5rem .5rem 1.5rem 3.5rem; height: 14rem; border: 1px solid var(--rule); }
.plot svg { display: block; width: 100%; height: 100%; }
.ys span, .xs span { position: absolute; font-size: .75rem; line-height: 1rem; color: var(--faint); }
.ys span { right: 100%; margin: 0 .35rem -.5rem 0; white-space: nowrap; }
.xs span { top: 100%; width: 3rem; margin: .2rem 0 0 -1.5rem; text-align: center; }
.grid, .level, .curve { vector-effect: non-scaling-stroke; fill: none; }
.grid { stroke: var(--rule); stroke-width: 1; }
line.level { stroke: var(--level); stroke-width: 1.5; stroke-dasharray: 6 4; }
.curve { stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.curve.c0 { stroke: var(--c0); } .curve.c1 { stroke: var(--c1); }
.band { opacity: .25; } .band.c0 { fill: var(--c0); } .band.c1 { fill: var(--c1); }
.legend { font-size: .8rem; } .legend span { margin-right: 1rem; }
.key { display: inline-block; width: .9rem; height: .2rem; margin-right: .35rem; vertical-align: middle; }
.key.c0 { background: var(--c0); } .key.c1 { background: var(--c1); } .key.level { background: var(--level); }
.images { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem; }
.images img { display: block; width: 100%; height: auto; border: 1px solid var(--rule); border-radius: .3rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; vertical-align: top; padding: .2rem .75rem .2rem 0; border-bottom: 1px solid var(--rule); }
th { font-weight: normal; color: var(--faint); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
.pairs { table-layout: fixed; } .pairs th, .pairs td:first-child:not(:last-child) { width: 42%; }
.sheet { overflow-x: auto; }
.columns { columns: 22rem; column-gap: 2rem; }
summary { cursor: pointer; }
@media print { body { max-width: none; } details > * { display: block; } }
"""
