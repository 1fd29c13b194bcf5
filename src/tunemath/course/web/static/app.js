// The page: shows what the server says, sends it the answer. All texts that are put in as HTML come
// from the course itself, rendered by the server; what a learner's code made is put in as text.

import { editor } from "./editor.js";

const $ = (id) => document.getElementById(id);
const SAVE_AFTER = 800;
const nonce = document.querySelector("meta[name=nonce]").content;

let current = null;
let version = "";
let saved = true;
let busy = false;
let timer = 0;
let figureUrl = "";

const code = editor($("editor"), {
  nonce,
  label: "Your answer, in Python",
  changed() {
    saved = false;
    $("saved").textContent = "";
    clearTimeout(timer);
    timer = setTimeout(save, SAVE_AFTER);
  },
  keys: { "Mod-Enter": () => act("grade"), "Shift-Enter": () => act("run") },
});

async function ask(action, body = {}) {
  let response;
  try {
    response = await fetch(`/api/${action}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
    });
  } catch {
    throw new Error("The server does not answer: is `tunemath learn --web` still running?");
  }
  const answer = await response.json();
  if (!response.ok) throw Object.assign(new Error(answer.error), answer);
  return answer;
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter(Boolean));
  return made;
}

function card(kind, head, ...children) {
  return element("div", { className: `card ${kind}` }, element("h4", { textContent: head }), ...children);
}

const output = (text) => text && element("pre", { textContent: text.trimEnd() });

function showResult(...cards) {
  $("result").replaceChildren(...cards.filter(Boolean));
  $("result").scrollIntoView({ block: "nearest", behavior: "smooth" });
}

// The list and the progress

function showList({ exercises, folder }) {
  const passed = exercises.filter((each) => each.passed).length;
  $("bar").firstElementChild.style.width = `${(100 * passed) / exercises.length}%`;
  $("bar").setAttribute("aria-valuenow", passed);
  $("count").textContent = `${passed} of ${exercises.length}`;
  $("folder").textContent = `Your answers are files in ${folder}; the terminal shares them.`;
  $("list").querySelector("ol").replaceChildren(...exercises.map(item));
}

function item({ number, name, title, passed, tries, hints }) {
  const told = [
    tries && `${tries} ${tries === 1 ? "try" : "tries"}`,
    hints && `${hints} of 3 hints`,
  ].filter(Boolean).join(", ");
  const link = element(
    "a",
    { href: `#/${name}`, className: passed ? "passed" : tries ? "tried" : "" },
    element("b", { textContent: passed ? "✓" : number, ariaLabel: passed ? `${number}, passed` : `${number}` }),
    element("span", { textContent: title }, told && element("small", { textContent: told })),
  );
  if (name === current?.name) link.setAttribute("aria-current", "page");
  return element("li", {}, link);
}

function menu(open) {
  $("list").classList.toggle("open", open);
  $("menu").setAttribute("aria-expanded", open);
}

// An exercise

async function open(name) {
  await save();
  const found = await ask("open", { exercise: name });
  showExercise(found);
  $("result").replaceChildren();
  showList(await ask("list"));
  menu(false);
  scrollTo(0, 0);
  for (const id of ["text", "work"]) $(id).scrollTop = 0;
}

function showExercise(found) {
  current = found;
  document.title = `${found.number}. ${found.title}`;
  $("number").textContent = `Exercise ${found.number}`;
  $("title").textContent = found.title;
  for (const part of ["question", "second", "sources"]) $(part).innerHTML = found[part];
  $("practice-text").innerHTML = found.practice;
  $("practice").open = found.passed;
  $("solution").hidden = true;
  $("hints").replaceChildren(...found.hints.map(hintCard));
  $("file").textContent = found.file;
  showHintsLeft();
  take(found);
}

function take(found) {
  clearTimeout(timer);
  version = found.version;
  code.text = found.source;
  saved = true;
  $("saved").textContent = "";
}

function hintCard(html, place) {
  return element(
    "div", { className: "hint" },
    element("strong", { textContent: `Hint ${place + 1} of ${current.all_hints}` }),
    element("div", { className: "prose", innerHTML: html }),
  );
}

function showHintsLeft() {
  $("hint").disabled = busy || $("hints").children.length >= current.all_hints;
}

async function save() {
  clearTimeout(timer);
  if (saved || !current || busy) return;
  const source = code.text;
  try {
    ({ version } = await ask("save", { exercise: current.name, source, version }));
    saved = source === code.text;
    $("saved").textContent = saved ? "Saved" : "";
  } catch (error) {
    await refused(error);
  }
}

async function refused(error) {
  if (error.version) {
    const theirs = await confirmed(
      "The file was changed outside this page",
      "An editor or another tab saved it since it was read here. Take that version, or keep yours?",
      "Take the file's", "Keep mine",
    );
    if (theirs) take(error);
    else {
      version = error.version;
      saved = false;
      await save();
    }
  } else showResult(card("bad", error.message));
}

// What the buttons do

async function act(action) {
  if (busy || !current) return;
  clearTimeout(timer);
  work(true);
  showResult(element("p", { className: "busy", textContent: action === "figure" ? "Drawing …" : "Running …" }));
  const source = code.text;
  try {
    const answer = await ask(action, { exercise: current.name, source, version });
    version = answer.version;
    saved = source === code.text;
    $("saved").textContent = saved ? "Saved" : "";
    work(false);
    showAnswer[action](answer);
  } catch (error) {
    work(false);
    $("result").replaceChildren();
    await refused(error);
  }
  if (!saved) await save();
}

function work(now) {
  busy = now;
  for (const id of ["grade", "run", "figure", "ask-solution", "ask-reset"]) $(id).disabled = now;
  $("stop").hidden = !now;
  showHintsLeft();
}

const showAnswer = {
  run({ printed, errors, ended, code: exit }) {
    const fine = !ended && !exit && !errors;
    const silent = fine && !printed && element("p", {
      textContent: "It ran and printed nothing. Call your function and print() what it returns.",
    });
    showResult(
      card(fine ? "" : "bad", ended ? `Stopped: ${ended}` : "Output", output(printed), output(errors), silent),
    );
  },

  grade({ passed, error, printed, parts, list }) {
    showResult(
      error && card("bad", `The code does not run: ${error}`),
      ...parts.map(partCard),
      passed && rightCard(list),
      printed && card("", "Printed", output(printed)),
    );
    showList(list);
    if (passed) {
      current.passed = true;
      $("practice").open = true;
    }
  },

  figure({ svg, error }) {
    if (error) {
      showResult(card("bad", `No figure yet: ${error}`));
      return;
    }
    URL.revokeObjectURL(figureUrl);
    figureUrl = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
    const alt = `${current.title}, drawn with your functions`;
    const image = element("img", { src: figureUrl, alt, width: 960, height: 360 });
    const larger = element("button", { title: "Show it large", onclick: () => enlarge(image) }, image);
    showResult(element("div", { className: "figure" }, larger));
  },
};

function enlarge(image) {
  Object.assign($("large").firstElementChild, { src: image.src, alt: image.alt });
  $("large").showModal();
}

function partCard(part) {
  if (part.passed) return card("good", `✓ ${part.function}: right in all of ${part.cases} cases`);
  const rows = [["call", part.call], ["expected", part.expected], ["given", part.given], ["where", part.why]];
  const shown = part.call ? rows.filter(([, text]) => text) : [];
  const said = element("p");
  if (part.mistake) said.append(element("strong", { textContent: `${part.mistake[0].toUpperCase()}${part.mistake.slice(1)}. ` }));
  said.append(element("span", { innerHTML: part.message }));
  return card(
    "bad", `✗ ${part.function}: right in ${part.right} of ${part.cases} cases`, said,
    shown.length && element("dl", {}, ...shown.flatMap(([name, text]) => [
      element("dt", { textContent: name }), element("dd", { textContent: text }),
    ])),
  );
}

function rightCard({ next, exercises }) {
  const following = exercises.find((each) => each.name === next);
  const on = following
    ? element("a", { href: `#/${next}`, textContent: `Go on to ${following.number}. ${following.title}` })
    : element("span", { textContent: "All ten done. Next: tunemath init, and a contract of your own." });
  return card("good", "Right.", element("p", {}, "Draw the figure with your functions, see it in practice, or: ", on));
}

async function hint() {
  const { hint: html, list } = await ask("hint", { exercise: current.name });
  if (html !== null) $("hints").append(hintCard(html, $("hints").children.length));
  showHintsLeft();
  showList(list);
  $("hints").lastElementChild?.scrollIntoView({ block: "center", behavior: "smooth" });
}

function confirmed(title, text, yes, no = "Back") {
  const dialog = $("confirm");
  $("confirm-title").textContent = title;
  dialog.querySelector("p").textContent = text;
  dialog.querySelector("[value=yes]").textContent = yes;
  dialog.querySelector("[value=no]").textContent = no;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => {
    dialog.onclose = () => done(dialog.returnValue === "yes");
  });
}

async function solution() {
  const asked = "You learn more from a third hint than from the answer. Show it all the same?";
  if (!(await confirmed("Show a solution?", asked, "Show it"))) return;
  const found = await ask("solution", { exercise: current.name });
  $("solution").querySelector("code").innerHTML = found.solution;
  $("solution").hidden = false;
  $("solution").scrollIntoView({ block: "nearest", behavior: "smooth" });
}

async function reset() {
  const told = "The starter comes back and this exercise counts as new. Your answer is kept beside it in the folder.";
  if (!(await confirmed("Begin again?", told, "Begin again"))) return;
  saved = false;
  await save();
  const found = await ask("reset", { exercise: current.name });
  showExercise(found);
  showList(found.list);
  showResult(found.kept && card("", "Begun again", element("p", { textContent: `Your former answer is ${found.kept}` })));
}

// A file that an editor saved meanwhile is shown, unless there is something to lose here.
async function refresh() {
  if (!current || busy || !saved) return;
  const found = await ask("open", { exercise: current.name });
  if (found.version !== version && saved) take(found);
  showList(await ask("list"));
}

const wanted = () => location.hash.startsWith("#/") && location.hash.slice(2);
const told = (run) => () => run().catch((error) => showResult(card("bad", error.message)));

for (const action of ["grade", "run", "figure"]) $(action).onclick = () => act(action);
$("stop").onclick = told(() => ask("stop"));
$("large").onclick = () => $("large").close();
$("hint").onclick = told(hint);
$("ask-solution").onclick = told(solution);
$("ask-reset").onclick = told(reset);
$("menu").onclick = () => menu(!$("list").classList.contains("open"));
addEventListener("hashchange", told(async () => wanted() && open(wanted())));
addEventListener("focus", told(refresh));
addEventListener("beforeunload", (event) => saved || event.preventDefault());

told(async () => {
  const list = await ask("list");
  await open(wanted() || list.next || list.exercises[0].name);
})();
