"""The style sheet of reports: light and dark, phone and print. It stands in the page itself."""

LIGHT = ("#0b6e99", "#d9480f", "#15803d", "#7e22ce", "#be185d", "#b08900", "#1f2937", "#0f766e", "#1d4ed8", "#6b7280")
DARK = ("#5cc3ee", "#ff9d5c", "#4ade80", "#c084fc", "#f472b6", "#facc15", "#f3f4f6", "#5eead4", "#93c5fd", "#9aa3b2")


def _palette(colours: tuple[str, ...]) -> str:
    return "".join(f"--c{i}:{colour};" for i, colour in enumerate(colours))


_DARK = (
    "--ink:#e7e9ee;--shade:#0009;--soft:#a3aab8;--line:#333a48;--page:#14171d;--card:#1b1f27;--mark:#2b3342;--accent:#7fb7ff;"
    "--heat:92,195,238;" + _palette(DARK)
)
_LIGHT = (
    "--ink:#1c2027;--shade:#1c202738;--soft:#5b6472;--line:#dde1e8;--page:#fff;--card:#f6f8fa;--mark:#eaf1fb;--accent:#1d5fb8;"
    "--heat:11,110,153;" + _palette(LIGHT)
)
PLOT = """
svg{display:block;width:100%;height:auto;font:11px system-ui,sans-serif}
.grid{stroke:var(--line);stroke-width:.7;fill:none}.axis{stroke:var(--soft);fill:none}
.tick,.title{fill:var(--soft)}.name{fill:var(--ink);stroke:var(--page);stroke-width:3px;stroke-linejoin:round;paint-order:stroke}
.line{fill:none;stroke:currentColor;stroke-width:2}.thin{stroke-width:1.4;opacity:.75}.other{stroke-dasharray:5 4}
.front{stroke:var(--soft);stroke-dasharray:5 4;stroke-width:1.3}
.bar{stroke:currentColor;stroke-width:1.3;fill:none;opacity:.75}
.dot{fill:currentColor;stroke:var(--page);stroke-width:1}.hollow.dot{fill:var(--page);stroke:currentColor;stroke-width:1.8}
""" + "".join(f".c{i}{{color:var(--c{i})}}" for i in range(len(LIGHT)))
ROOT = f":root{{color-scheme:light dark;{_LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{_DARK}}}}}"
PAGE = (
    ROOT
    + """
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1120px;margin:0 auto;padding:1.5rem 1.25rem 4rem}
h1{font-size:1.7rem;line-height:1.25;margin:.2rem 0 1rem}h2{font-size:1.15rem;margin:2.4rem 0 .6rem}
p,li{overflow-wrap:anywhere}p{margin:.4rem 0}.soft,figcaption,.legend{color:var(--soft)}small,figcaption,.legend{font-size:.85rem}
.verdict{background:var(--mark);border-left:4px solid var(--accent);border-radius:6px;padding:.8rem 1.1rem}
.verdict p:first-child{font-weight:600;font-size:1.08rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:.7rem;margin:1rem 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.55rem .8rem}
.tile b{display:block;font-size:1.15rem;font-variant-numeric:tabular-nums}
/* a shadow at the side where there is more to see */
.scroll{overflow-x:auto;-webkit-overflow-scrolling:touch;background-repeat:no-repeat;background-image:
linear-gradient(90deg,var(--page) 40%,transparent),linear-gradient(270deg,var(--page) 40%,transparent),
linear-gradient(90deg,var(--shade),transparent),linear-gradient(270deg,var(--shade),transparent);
background-position:-1px 0,calc(100% + 1px) 0,0 0,100% 0;background-size:42px 100%,42px 100%,14px 100%,14px 100%;
background-attachment:local,local,scroll,scroll}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:.42rem .6rem;border-bottom:1px solid var(--line);white-space:nowrap}
th{color:var(--soft);font-weight:600;vertical-align:bottom;white-space:normal;min-width:4.2em}
th.text,td.text{text-align:left}td.wrap{white-space:normal;min-width:14em;vertical-align:top}
tr.chosen td{background:var(--mark);font-weight:600}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),1fr));gap:1.2rem}
figure{margin:0;background:var(--page);border:1px solid var(--line);border-radius:6px;padding:.8rem}
figure h3{font-size:1rem;margin:0 0 .4rem}
.legend span{margin-right:.9em;white-space:nowrap}.legend i{display:inline-block;width:1.4em;border-top:3px solid currentColor;
vertical-align:middle;margin-right:.35em}.legend i.other{border-top-style:dashed}
.heat td:not(.text),.heat th:not(.text){text-align:center;min-width:3em}.heat td.diagonal{font-weight:700}.heat,.narrow{width:auto}
pre{background:var(--card);border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem;white-space:pre-wrap;
overflow-wrap:anywhere;font:.82rem/1.5 ui-monospace,Menlo,Consolas,monospace;margin:.3rem 0 .9rem}
ul{padding-left:1.2rem;margin:.4rem 0}
@media(max-width:600px){body{font-size:15px}main{padding:1rem .9rem 3rem}h1{font-size:1.35rem}
th,td{padding:.38rem .45rem}td.wrap{min-width:7em;font-size:.85rem}.heat{font-size:.82rem}
td.text:first-child,th.text:first-child{position:sticky;left:0;background:var(--page)}
tr.chosen td.text:first-child{background:var(--mark)}.heat td:not(.text),.heat th{padding:.38rem .25rem;min-width:2.3em}}
@media print{:root{"""
    + _LIGHT
    + """}@page{size:A4;margin:14mm}body{font-size:10pt}main{max-width:none;padding:0}
.scroll{overflow:visible;background:none}table{font-size:8.5pt}th,td{padding:.25rem .35rem}small,figcaption,.legend{font-size:8pt}
.plots{grid-template-columns:repeat(2,minmax(0,1fr))}.tiles{grid-template-columns:repeat(3,1fr)}
.heat td:not(.text),.heat th{padding:.25rem .15rem;min-width:2.3em}
figure,.tile,tr,pre{break-inside:avoid}h2{break-after:avoid}pre{font-size:7.5pt}
.verdict,tr.chosen td,.heat td{print-color-adjust:exact;-webkit-print-color-adjust:exact}}
"""
    + PLOT
)
"""Of the whole page."""
ALONE = ROOT + PLOT + "svg{color:var(--ink)}"
"""Of a plot in a file of its own."""
