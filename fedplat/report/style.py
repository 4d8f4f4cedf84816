"""The style sheet of the HTML report: quiet on a screen, sober on paper."""

from __future__ import annotations

from fedplat.report.svg import STYLE as SVG_STYLE

STYLE = (
    """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #eef0f3; color: #1c2430;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif; }
main { max-width: 50rem; margin: 2rem auto; padding: 3rem 3.5rem; background: #fff; border-radius: 4px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .5rem; padding-top: .8rem; border-top: 1px solid #d5dae1; }
p { margin: .5rem 0; }
.from { color: #556; margin: 0 0 1.6rem; }
.odds { font-size: 1.25rem; line-height: 1.45; padding: 1.1rem 1.3rem; margin: 1.2rem 0;
  background: #f2f6fb; border-left: 5px solid #1f5fa8; }
.odds p { margin: .3rem 0; }
.attention { padding: .5rem 1.3rem; border-left: 5px solid #a3250f; background: #fdf1ee; }
table { width: 100%; border-collapse: collapse; margin: .8rem 0; font-size: .875rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid #e4e8ed;
  overflow-wrap: break-word; }
th { font-weight: 600; }
thead th { color: #556; }
tbody th { overflow-wrap: anywhere; } tbody th.name { white-space: nowrap; }
td.long { overflow-wrap: anywhere; min-width: 7rem; }
table.pairs th { width: 34%; white-space: normal; }
table.wide { font-size: .8rem; } .wide th, .wide td { padding-right: .35rem; }
.pass, .fail, .declared { font-weight: 600; white-space: nowrap; }
.pass { color: #1d6b34; } .fail { color: #a3250f; } .declared { color: #6a5300; }
figure { margin: 1.4rem 0; break-inside: avoid; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
figure > svg { width: 100%; height: auto; display: block; }
"""
    + SVG_STYLE
    + """
.legend { font-size: .8rem; color: #3a4452; } .key { margin-right: 1.4rem; white-space: nowrap; }
.hand td { height: 2.2rem; }
details { margin-top: 2rem; font-size: .75rem; color: #556; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .67rem; }
@media (max-width: 40rem) { main { margin: 0; padding: 1.2rem; overflow-x: auto; } }
@page { size: A4; margin: 18mm 16mm; }
@media print {
  body { background: #fff; font-size: 10.5pt; }
  main { max-width: none; margin: 0; padding: 0; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  h2, h2 + p { break-after: avoid; } table.whole { break-inside: avoid; }
  tr, .odds, .attention { break-inside: avoid; } thead { display: table-header-group; }
  figure { margin: .7rem 0; } figure > svg { width: auto; max-width: 100%; max-height: 80mm; }
  .odds { font-size: 12.5pt; margin: .8rem 0; padding: .7rem 1rem; }
  details { display: none; }
}
"""
)
