"""Theme of the page: muted colours, radiographs on black, no external resources."""

import gradio as gr

# Gradio includes this font; a GoogleFont would be fetched from another server.
THEME = gr.themes.Default(
    primary_hue="sky",
    secondary_hue="sky",
    neutral_hue="slate",
    font=(gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)), "ui-sans-serif", "system-ui", "sans-serif"),
)

CSS = """
.gradio-container { width: 100% !important; max-width: 1240px !important; margin: 0 auto !important; }
#title h1 { margin: 0; font-size: 1.5rem; }
#title p { margin: 0; opacity: 0.75; }
#notice { border-left: 4px solid #d97706; border-radius: 6px; padding: 0.5rem 0.9rem; background: #fef3c7; }
#notice * { color: #451a03; font-size: 0.92rem; }
.dark #notice { background: #451a03; }
.dark #notice * { color: #fef3c7; }
.radiograph .image-container, .radiograph .image-frame,
.radiograph .grid-wrap, .radiograph .thumbnail-item { background: #0b0f14; }
.radiograph .image-frame img { width: 100% !important; height: 100% !important; object-fit: contain; }
#grid img { image-rendering: pixelated; cursor: crosshair; }
#neighbours, #examples { border: none; }
#prompted, #prompted :is(table, .cell-wrap, th) { font-size: 0.85rem; font-family: var(--font); }
#found { background: var(--block-background-fill); }
#found .study { margin-bottom: 0.6rem; font-size: 0.85rem; overflow-wrap: anywhere; }
#findings .bar { display: flex; flex-wrap: wrap; justify-content: space-between; margin-top: 0.5rem; }
#findings progress { width: 100%; height: 4px; accent-color: var(--primary-500); }
#report textarea { font-size: 1.02rem; line-height: 1.5; }
#status { min-height: 1.5rem; }
:is(#status, #score-status, #generate-status, #tokens-status, #edit-status) { color: var(--primary-600); }
.message strong { color: var(--error-text-color, #b91c1c); }
/* One toast collects the errors; only the newest is shown. */
.toast-messages > .toast-message-item:not(:last-child), .toast-count { display: none; }
/* Otherwise a wide table or gallery widens the page beyond a phone. */
.gradio-container > .main, .main > .wrap, main.contain, .contain .column > *, .contain .gr-group > *,
.contain .styler > * { min-width: 0 !important; }
.gradio-container > .main { padding-inline: clamp(0.5rem, 3vw, 2rem) !important; }
:is(#examples, #neighbours) .grid-wrap { min-height: 0; }
@media (max-width: 640px) { /* Gradio applies rules within @media to the content of .contain only. */
  :is(#examples, #neighbours) .grid-container { grid-template-columns: repeat(2, 1fr) !important; }
  #examples, #examples .grid-wrap { max-height: none !important; } /* four rows instead of two */
  #gallery, #gallery .grid-wrap { height: auto !important; } /* no black area below small images */
  #prompted th span { font-size: 0.75rem; overflow-wrap: normal !important; word-break: normal !important; }
  #findings .bar:first-child { margin-top: 1.6rem; } /* the label takes two lines */
}
"""
