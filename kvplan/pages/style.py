"""What Streamlit's theme leaves open: contrast of small print and of charts, a visible focus, calm for who asks."""

SHEET = """<style>
.stMainBlockContainer {padding-top: 2.6rem; max-width: 1500px}
.stMainBlockContainer h1 {font-size: 1.5rem; padding: 0}
.stMainBlockContainer h1 small {font-size: 1rem; font-weight: 400}
.stMainBlockContainer h2 {font-size: 1.3rem}
.stMainBlockContainer h3 {font-size: 1.1rem; padding-top: .6rem}
/* small print is not faint print */
[data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] *,
[data-testid="stMetricDelta"], [data-testid="stMetricDelta"] *, [data-testid="stWidgetLabel"] *,
[data-testid="stMetricLabel"] *, [role="tab"] * {opacity: 1 !important; color: inherit !important}
[data-testid="stCaptionContainer"] {overflow-wrap: anywhere; line-height: 1.45; max-width: 56rem}
[data-testid="stCaptionContainer"] code {
  white-space: nowrap; font-size: .9em; padding: 0 .15em; color: inherit !important}
::placeholder {color: inherit !important; opacity: .75 !important}
/* words of charts are words of the page, in its colour */
.vega-embed svg text {fill: currentColor}
.vega-embed {overflow: visible}
/* ... and stand clear of the lines that they cross */
.vega-embed svg .mark-rule line {filter: drop-shadow(0 0 1px light-dark(#fff, #171614))}
.vega-embed svg .role-mark text {paint-order: stroke; stroke: light-dark(#fff, #171614); stroke-width: 3px}
ul.key {list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; font-size: .875rem}
ul.key li {display: flex; align-items: center; gap: .4rem; margin: 0; padding: 0; font-size: .875rem}
ul.key i {width: .8rem; height: .8rem; border: 1px solid #767676; flex: none}
[data-testid="stBaseButton-primary"], [data-testid="stBaseButton-primary"] * {color: light-dark(#fff, #111) !important}
.stCode code span {color: inherit !important}
/* what is off or empty is seen to be there */
[data-testid="stCheckbox"] label > div:first-of-type, [data-testid="stProgress"] [role="progressbar"] > div {
  outline: 1px solid #767676}
/* under way, nobody knows how long */
.going {height: .5rem; border-radius: .25rem; outline: 1px solid #767676; overflow: hidden}
.going i {display: block; width: 25%; height: 100%; border-radius: inherit; background: light-dark(#0072B2, #56B4E9);
  animation: going 2s ease-in-out infinite alternate}
@keyframes going {to {margin-left: 75%}}
/* figures share their row */
[data-testid="stElementContainer"]:has(> [data-testid="stMetric"]) {flex: 1 1 10.5rem; max-width: 16.5rem}
[data-testid="stMetricValue"] {font-size: 1.65rem}
[data-testid="stMetricDelta"], [data-testid="stMetricDelta"] * {
  white-space: normal !important; overflow: visible !important}
[data-testid="stMetricDelta"] {background: none !important; padding: 0 !important}
.st-key-block_owners td * {overflow-wrap: anywhere !important}
[data-testid="stTable"] {overflow-x: auto}
[data-testid="stTable"] code {font-size: .8125rem !important; white-space: nowrap}
:is(.st-key-kernels, .st-key-log_lines) [data-testid="stTable"] :is(td, th):last-child {min-width: 15rem}
/* beside each other where there is room for words and axes */
.st-key-latencies [data-testid="stColumn"] {min-width: 15rem}
[data-testid="stTable"] :is(td, th):not(:first-child) {min-width: 4.6rem}
[data-testid="stTable"] th * {color: inherit !important; opacity: 1 !important}
/* the sentence reads on, and says the units of its numbers */
:is(.st-key-thinking, .st-key-prompt, .st-key-answer) [data-testid="stTextInputRootElement"]::after {
  content: "tokens"; align-self: center; padding-right: .6rem; font-size: .875rem; opacity: .85}
.st-key-sentence [data-testid="stWidgetLabel"] {min-height: 1.25rem}
:is(button, input, textarea, a, summary, [role="tab"], [role="slider"], [tabindex="0"]):focus-visible {
  outline: 3px solid currentColor !important; outline-offset: 2px !important}
/* what stands in a box that cuts has its ring inside */
:is(input, textarea, [role="tab"]):focus-visible {outline-offset: -3px !important; border-radius: .4rem}
@media (prefers-reduced-motion: reduce) {
  *, *::before, *::after {animation: none !important; transition: none !important; scroll-behavior: auto !important}}
@media (max-width: 1000px) {.stMainBlockContainer {padding-top: 4rem}}
/* where the sidebar is folded away, its button says what is in it */
[data-testid="stExpandSidebarButton"] {width: auto}
[data-testid="stExpandSidebarButton"]::after {content: "Engine, flags, your own model"; padding: 0 .4rem}
@media (max-width: 640px) {
  [data-testid="stTabs"] [role="tablist"] {gap: .55rem}
  [data-testid="stTabs"] [role="tab"] * {font-size: .84rem}
  .stMainBlockContainer {padding-left: 1rem; padding-right: 1rem}
  .stCode code {font-size: .68rem}
  /* the last cell of a wide table, its words, below the others */
  :is(.st-key-kernels, .st-key-log_lines, .st-key-sources) :is(thead, tbody) {display: block}
  :is(.st-key-kernels, .st-key-log_lines, .st-key-sources) table {display: block; width: 100%}
  .st-key-log_lines tr {display: grid; grid-template-columns: 1fr repeat(3, 4.5rem)}
  .st-key-sources tr {display: grid; grid-template-columns: 1fr 3.8rem 7.5rem}
  .st-key-kernels tr {display: grid; grid-template-columns: 8.7rem 1fr repeat(3, 3.3rem)}
  :is(.st-key-kernels, .st-key-log_lines, .st-key-sources) td:last-child:not(:has(p:not(:empty))) {display: none}
  :is(.st-key-kernels, .st-key-log_lines, .st-key-sources) [data-testid="stTable"] :is(td, th) {
    min-width: 0 !important; border: 0; padding: .25rem .4rem}
  :is(.st-key-kernels, .st-key-log_lines, .st-key-sources) :is(td, th):last-child {grid-column: 1 / -1}
  :is(.st-key-kernels, .st-key-log_lines, .st-key-sources) tr {border-bottom: 1px solid #76767655}
  .st-key-sentence > div {flex-grow: 1}
}
</style>"""
