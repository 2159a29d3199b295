"""How the page looks: fonts that the reader's system has, colours for light and dark."""

from __future__ import annotations

from typing import Any

import gradio as gr

#: No font is fetched: a page in a closed network looks the same.
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> Any:
    """Gradio's theme of the page."""
    made = gr.themes.Default(
        primary_hue="blue", secondary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONO
    )
    # Gradio's own quiet texts and buttons have less than 4.5:1.
    return made.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
    )


CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
:root { --vl-link: #1d4ed8; --vl-span: #2563eb; --vl-span-other: #d97706; --vl-bar: #0d9488;
  --vl-good: #15803d;  --vl-bad: #b91c1c; --vl-bad-paper: #fef2f2; --vl-lane: #64748b1f; }
.dark { --vl-link: #93c5fd; --vl-span: #60a5fa; --vl-span-other: #fbbf24; --vl-bar: #2dd4bf;
  --vl-good: #4ade80;  --vl-bad: #fca5a5; --vl-bad-paper: #450a0a; --vl-lane: #94a3b826; }
.gradio-container .html-container { padding: 0 !important; }
.vl-timeline { display: block; overflow: visible; font-size: 11px; margin: 4px 0; }
.vl-word { fill: var(--body-text-color-subdued); }
.vl-lane { fill: var(--vl-lane); }
.vl-span { fill: var(--vl-span); opacity: .85; rx: 3px; }
.vl-span-1 { fill: var(--vl-span-other); }
.vl-bar, .vl-curve { fill: var(--vl-bar); }
.vl-tick { stroke: var(--body-text-color-subdued); stroke-width: 1; opacity: .7; }
.vl-axis { stroke: var(--border-color-primary); stroke-width: 1; }
.vl-strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(84px, 1fr)); gap: 6px;
  max-height: 1040px; overflow-y: auto; }
.vl-strip figure { margin: 0; }
.vl-pic { position: relative; width: 100%; border-radius: 4px; overflow: hidden;
  background-color: var(--vl-lane); }
.vl-pic img { position: absolute; inset: 0; width: 100% !important; height: 100% !important;
  max-width: none; image-rendering: pixelated; margin: 0 !important; object-fit: fill; }
.vl-strip figcaption { font-size: 11px; text-align: center; margin: 0;
  color: var(--body-text-color-subdued); }
.vl-legend, .vl-line, .vl-hint { font-size: 13px; color: var(--body-text-color-subdued); }
.vl-legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 2px 0 6px; }
.vl-legend i { display: inline-block; width: 12px; height: 12px; margin-right: 6px;
  border: 1px solid var(--border-color-primary); border-radius: 2px; vertical-align: -1px; }
.vl-kept { background: #f8fafc; } .vl-merged { background: #2563eb99; }
.vl-dropped { background: #0c0c10; }
.vl-problem { color: var(--vl-bad); background: var(--vl-bad-paper); padding: 8px 12px;
  border-left: 3px solid var(--vl-bad); border-radius: 4px; margin: 4px 0; }
.vl-stages { display: flex; flex-wrap: wrap; gap: 4px 6px; align-items: center; font-size: 12px; }
.vl-stages span { padding: 2px 8px; border-radius: 999px;
  border: 1px solid var(--border-color-primary); }
.vl-done { color: var(--body-text-color); background: var(--vl-lane); }
.vl-later { color: var(--body-text-color-subdued); }
.vl-now { color: var(--vl-link); border-color: var(--vl-span) !important; font-weight: 600; }
.vl-meter { height: 6px; border-radius: 3px; background: var(--vl-lane); margin: 6px 0; }
.vl-meter i { display: block; height: 100%; border-radius: 3px; background: var(--vl-span); }
.vl-tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(90px, 1fr)); gap: 6px;
  margin: 0; }
.vl-tiles div { background: var(--vl-lane); border-radius: 8px; padding: 8px 10px; min-width: 0; }
.vl-tiles dt, .vl-tiles dd + dd { font-size: 12px; margin: 0;
  color: var(--body-text-color-subdued); }
.vl-tiles dd { font-size: 17px; font-weight: 600; margin: 0; white-space: nowrap; }
.vl-tiles dd + dd { font-weight: 400; white-space: normal; }
.vl-notes { font-size: 12px; color: var(--body-text-color-subdued); margin: 8px 0 0 18px; }
.vl-table, .vl-table tr { border: 0 !important; }
.vl-table { width: 100%; border-collapse: collapse; font-size: 13px; }
.vl-table th, .vl-table td { text-align: right; padding: 4px 8px; font-weight: 400;
  border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.vl-table th:first-child, .vl-words th, .vl-words td { text-align: left; vertical-align: top; }
.vl-words td { overflow-wrap: anywhere; }
.vl-table thead th { color: var(--body-text-color-subdued); }
.vl-verdict { font-weight: 600; margin: 4px 0; }
.vl-yes { color: var(--vl-good); } .vl-no { color: var(--vl-bad); }
#problem:not(:has(p)), #sprite, #timeline:not(:has(svg)), #status:not(:has(*)),
#account:not(:has(dl)), #curve:not(:has(*)), #index:not(:has(*)), #examples:not(:has(button)),
#found:not(:has(*)), #captions:not(:has(*)), #peaks:not(:has(*)), #long-answer:not(:has(*)),
#verdict:not(:has(*)) { display: none !important; }
/* Gradio hides tabs in a menu by the widths of an unseen copy of them. Without widths all stay, and
   what has no room goes to another line. */
#tabs .tab-container.visually-hidden button { width: 0; padding: 0; overflow: hidden; }
#tabs .tab-wrapper, #tabs [role=tablist] { height: auto; flex-wrap: wrap; overflow: visible; }
#tabs [role=tablist] button { height: var(--size-8); padding: 0 var(--size-3); }
#tabs [role=tablist] button[aria-selected=true] { color: var(--vl-link); font-weight: 600; }
#about h1 { font-size: 26px; font-weight: 700; margin: 4px 0; }
#about p { margin: 4px 0; } .vl-model { font-size: 14px; }
.gradio-container .html-container h2 { font-size: 18px !important; font-weight: 600;
  margin: 12px 0 4px; }
.gradio-container .html-container h4 { font-size: 13px !important; font-weight: 600;
  margin: 0 0 4px; color: var(--body-text-color-subdued); }
details.vl-model summary, .vl-model a { color: var(--vl-link); cursor: pointer; }
.vl-model a { text-decoration: underline; }
details.vl-model summary { padding: 4px 0; width: fit-content; }
details.vl-model pre { padding: 8px 12px; border-radius: 6px; background: var(--vl-lane);
  white-space: pre-wrap; overflow-wrap: anywhere; margin: 4px 0; }
details.vl-model ul { list-style: disc; margin: 4px 0 4px 20px; }
.vl-answer:has(*) .html-container > :not(.vl-hint):not(h4), #full, #less { line-height: 1.5; }
#full, #less, .vl-scroll { border: 1px solid var(--border-color-primary); border-radius: 8px;
  padding: 10px 12px !important; background: var(--block-background-fill); }
.vl-scroll { max-height: 320px; overflow-y: auto; display: grid; gap: 12px; }
.vl-turn small { font-size: 12px; color: var(--body-text-color-subdued); }
.vl-asked { width: fit-content; max-width: 92%; margin: 0 0 4px auto; padding: 5px 12px;
  border-radius: 12px 12px 2px 12px; background: var(--vl-lane); }
.vl-said { margin: 0 0 2px; font-size: 16px; white-space: pre-wrap; overflow-wrap: anywhere; }
.vl-time, .vl-example { font-weight: 400 !important; font-size: inherit !important; }
.vl-time { background: none !important; color: var(--vl-link) !important; cursor: pointer;
  text-decoration: underline; padding: 2px 3px; border-radius: 4px;
  white-space: nowrap; min-height: 24px; }
.vl-moments { list-style: none; margin: 4px 0; padding: 0; display: grid; gap: 2px; }
.vl-examples { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; font-size: 13px; }
.vl-examples > span { color: var(--body-text-color-subdued); }
.vl-example { border: 1px solid var(--border-color-primary); border-radius: 999px; cursor: pointer;
  padding: 4px 12px; min-height: 28px; background: var(--block-background-fill); text-align: left; }
.vl-example:hover, .vl-time:hover { background: var(--vl-lane) !important; }
#python .cm-content span, #json .cm-content span { color: inherit !important; }
/* A tooltip is as wide as what it belongs to, so that it never leaves the page. */
.vl-term { text-decoration: underline dotted; text-underline-offset: 3px; cursor: help; }
.vl-term [role=tooltip] { display: none; position: absolute; z-index: 20; left: 0; right: 0;
  top: calc(100% + 4px); padding: 6px 10px; border-radius: 6px; font-size: 12px; font-weight: 400;
  line-height: 1.4; text-align: left; white-space: normal; color: #f8fafc; background: #1e293b;
  border: 1px solid #64748b; pointer-events: none; }
.vl-term:hover [role=tooltip], .vl-term:focus [role=tooltip] { display: block; }
.vl-stages, .vl-tiles, .vl-legend, .vl-verdict, .vl-table tr, .vl-moments li {
  position: relative; }
.gradio-container :is(.vl-term, .vl-time, .vl-example, .vl-scroll, summary, pre):focus-visible,
.gradio-container button:focus-visible { outline: 2px solid var(--vl-link); outline-offset: 2px; }
#status, #account, #strip, #verdict, #found, #peaks { overflow: visible !important; }
.gradio-container .label-wrap > span:first-child { text-align: left; }
@media (max-width: 640px) {
  .vl-strip { grid-template-columns: repeat(auto-fill, minmax(60px, 1fr)); gap: 4px;
    max-height: 420px; }
  #video { height: 260px !important; }
  .vl-tiles { grid-template-columns: 1fr 1fr; }
}
"""
