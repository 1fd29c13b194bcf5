// A Python editor in CodeMirror: what the course's page needs of it and nothing else.

import { closeBrackets, closeBracketsKeymap } from "@codemirror/autocomplete";
import { defaultKeymap, history, historyKeymap, indentWithTab } from "@codemirror/commands";
import { python } from "@codemirror/lang-python";
import {
  bracketMatching, indentOnInput, indentUnit, syntaxHighlighting,
} from "@codemirror/language";
import { EditorState } from "@codemirror/state";
import {
  drawSelection, EditorView, highlightActiveLine, highlightActiveLineGutter, keymap, lineNumbers,
} from "@codemirror/view";
import { tagHighlighter, tags } from "@lezer/highlight";

// The colours are in the page's style sheet, so that they change with light and dark.
const words = tagHighlighter([
  { tag: tags.comment, class: "c" },
  { tag: [tags.string, tags.special(tags.string)], class: "s" },
  { tag: [tags.number, tags.bool, tags.null], class: "m" },
  { tag: [tags.keyword, tags.operatorKeyword, tags.controlKeyword, tags.definitionKeyword], class: "k" },
  { tag: [tags.function(tags.definition(tags.variableName)), tags.definition(tags.className)], class: "nf" },
]);

/** Put an editor into `parent`; `changed()` is called after each edit by the learner. */
export function editor(parent, { nonce, label, changed, keys }) {
  const bindings = Object.entries(keys).map(([key, run]) => ({ key, run: () => (run(), true) }));
  const extensions = [
    EditorView.cspNonce.of(nonce),
    lineNumbers(), history(), drawSelection(), indentOnInput(), bracketMatching(),
    closeBrackets(), highlightActiveLine(), highlightActiveLineGutter(), python(),
    indentUnit.of("    "), EditorState.tabSize.of(4), syntaxHighlighting(words),
    EditorView.contentAttributes.of({ "aria-label": label }),
    keymap.of([...bindings, ...closeBracketsKeymap, ...defaultKeymap, ...historyKeymap, indentWithTab]),
    EditorView.updateListener.of((update) => {
      if (update.docChanged) changed();
    }),
  ];
  const state = (doc) => EditorState.create({ doc, extensions });
  const view = new EditorView({ parent, state: state("") });
  return {
    get text() { return view.state.doc.toString(); },
    set text(doc) { view.setState(state(doc)); },
    focus() { view.focus(); },
  };
}
