"""What Streamlit's theme leaves open: contrast of small print and of charts, a visible focus, calm for who asks."""

SHEET = """<style>
.stMainBlockContainer {padding-top: 2.6rem; max-width: 1180px}
.stMainBlockContainer h1 {font-size: 1.5rem; padding: 0}
.stMainBlockContainer h1 small {font-size: 1rem; font-weight: 400}
.stMainBlockContainer h2 {font-size: 1.3rem}
.stMainBlockContainer h3 {font-size: 1.1rem; padding-top: .6rem}
/* small print is not faint print */
[data-testid="stCaptionContainer"], [data-testid="stCaptionContainer"] *,
[data-testid="stMetricDelta"], [data-testid="stMetricDelta"] *, [data-testid="stWidgetLabel"] *,
[data-testid="stMetricLabel"] *, [role="tab"] * {opacity: 1 !important; color: inherit !important}
[data-testid="stCaptionContainer"] {overflow-wrap: anywhere; line-height: 1.45}
[data-testid="stCaptionContainer"] code {white-space: nowrap; color: inherit !important}
::placeholder {color: inherit !important; opacity: .75 !important}
/* words of charts are words of the page, in its colour */
.vega-embed svg text {fill: currentColor}
.vega-embed {overflow: visible}
ul.key {list-style: none; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: .15rem 1.1rem; font-size: .875rem}
ul.key li {display: flex; align-items: center; gap: .4rem; margin: 0; padding: 0; font-size: .875rem}
ul.key i {width: .8rem; height: .8rem; border: 1px solid #767676; flex: none}
[data-testid="stBaseButton-primary"], [data-testid="stBaseButton-primary"] * {color: light-dark(#fff, #111) !important}
.stCode code span {color: inherit !important}
/* figures */
[data-testid="stMetricValue"] {font-size: 1.65rem}
[data-testid="stMetricDelta"], [data-testid="stMetricDelta"] * {
  white-space: normal !important; overflow: visible !important}
[data-testid="stMetricDelta"] {background: none !important; padding: 0 !important}
.st-key-block_owners td * {overflow-wrap: anywhere !important}
[data-testid="stTable"] {overflow-x: auto}
[data-testid="stTable"] code {font-size: .8125rem !important}
:is(.st-key-kernels, .st-key-log_lines) [data-testid="stTable"] :is(td, th):last-child {min-width: 15rem}
/* beside each other where there is room for words and axes */
.st-key-latencies [data-testid="stColumn"] {min-width: 15rem}
[data-testid="stTable"] :is(td, th):not(:first-child) {min-width: 4.6rem}
[data-testid="stTable"] th * {color: inherit !important; opacity: 1 !important}
/* the sentence reads on */
.st-key-sentence [data-testid="stWidgetLabel"] {min-height: 1.25rem}
:is(button, input, textarea, a, summary, [role="tab"], [role="slider"], [tabindex="0"]):focus-visible {
  outline: 3px solid currentColor !important; outline-offset: 2px !important}
/* what stands in a box that cuts has its ring inside */
:is(input, textarea, [role="tab"]):focus-visible {outline-offset: -3px !important; border-radius: .4rem}
@media (prefers-reduced-motion: reduce) {
  *, *::before, *::after {animation: none !important; transition: none !important; scroll-behavior: auto !important}}
@media (max-width: 1000px) {.stMainBlockContainer {padding-top: 4rem}}
@media (max-width: 640px) {
  [data-testid="stTabs"] [role="tablist"] {gap: .55rem}
  [data-testid="stTabs"] [role="tab"] * {font-size: .84rem}
  .stMainBlockContainer {padding-left: 1rem; padding-right: 1rem}
  .stCode code {font-size: .68rem}
  .st-key-sentence > div {flex-grow: 1}
}
</style>"""
