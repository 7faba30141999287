"use strict";
// Everything that comes from a user or the model is put on the page as text, never as markup.

const element = (id) => document.getElementById(id);
let tasks = [];
let asked = null;

function made(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

async function request(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
  };
  const began = performance.now();
  const response = await fetch(path, options);
  let content;
  try { content = await response.json(); } catch { content = { error: `the server answered ${response.status}` }; }
  if (!response.ok) throw new Error(content.error);
  return { content, milliseconds: performance.now() - began };
}

// How the task that answered shows its answers, as the server says.
function formOf(answer) {
  return tasks.find((task) => task.name === answer.task)?.answer ?? { key: null, form: "text" };
}

function said(answer) {
  const { key, form } = formOf(answer);
  const value = answer[key];
  if (value === "" && answer.best_guess) return `(no answer; the best guess is ${answer.best_guess})`;
  if (value === null && answer.best_guess) return `(not sure enough; the best guess is ${answer.best_guess})`;
  if (typeof value === "string") return value;
  if (typeof value === "number") return value.toFixed(3);
  if (form === "spans") return value.map((span) => `${span.word} (${span.entity_group ?? span.tag})`).join(", ");
  if (Array.isArray(value) && value.every((one) => typeof one === "string")) return value.join(", ");
  return JSON.stringify(value ?? answer, null, 2);
}

// The probability of each label, or of each choice in their order.
function distribution(answer, input) {
  const shares = answer.probabilities;
  if (Array.isArray(shares)) return shares.map((share, place) => [input.choices?.[place] ?? String(place), share]);
  return Object.entries(shares ?? {}).sort((one, other) => other[1] - one[1]);
}

function currentInput() {
  const context = element("context").value, instruction = element("instruction").value;
  const choices = element("choices").value.split("\n").filter((line) => line.trim());
  return {
    text: element("text").value,
    ...(context.trim() ? { context } : {}),
    ...(instruction.trim() ? { instruction } : {}),
    ...(choices.length ? { choices } : {}),
  };
}

// What the page asks of the server: one answer, or those of several tasks.
function question(input) {
  const chosen = element("task").selectedOptions[0], hint = element("task").value;
  if (chosen.dataset.tasks) return { inputs: input, tasks: chosen.dataset.tasks };
  return { inputs: input, ...(hint ? { task_hint: hint } : {}) };
}

function drawBars(list, shares, chosen) {
  for (const [task, share] of shares) {
    let row = [...list.children].find((node) => node.dataset.task === task);
    if (!row) {
      row = made("li");
      row.dataset.task = row.title = task;  // a long name is cut
      const track = made("div", "track");
      track.append(made("div", "bar"));
      row.append(made("span", "name", task), track, made("span", "share"));
      list.append(row);
    }
    row.classList.toggle("chosen", chosen(task));
    row.querySelector(".share").textContent = `${(100 * share).toFixed(1)} %`;
    const bar = row.querySelector(".bar");
    requestAnimationFrame(() => { bar.style.width = `${100 * share}%`; });
  }
}

function passage(spans, text, label) {
  const node = made("div", "passage");
  node.tabIndex = 0;
  node.setAttribute("role", "group");
  node.setAttribute("aria-label", label);
  // The server counts characters, and a string here counts some of them twice.
  const characters = [...text];
  let last = 0;
  for (const span of spans) {
    const mark = made("mark", "", characters.slice(span.start, span.end).join(""));
    const kind = span.entity_group ?? span.tag;
    if (kind) mark.append(made("small", "", ` ${kind}`));
    node.append(characters.slice(last, span.start).join(""), mark);
    last = span.end;
  }
  node.append(characters.slice(last).join(""));
  return node;
}

// The parts of the page that show one answer.
function shownAnswer(answer, input) {
  const { form, key } = formOf(answer);
  const text = made("p", form === "code" ? "said code" : "said", said(answer) || "(nothing)");
  text.tabIndex = 0;
  const parts = [text];
  if (form === "span" && input.context && answer.end > answer.start) {
    parts.push(passage([answer], input.context, "Context with the answer marked"));
  }
  if (form === "spans" && answer[key].length) parts.push(passage(answer[key], input.text, "Text with the spans marked"));
  const shares = distribution(answer, input);
  if (shares.length) {
    const list = made("ul", "bars");
    list.setAttribute("aria-label", "Probabilities");
    const given = new Set([answer[key], answer.level].flat());
    drawBars(list, shares, (label) => given.has(label));
    parts.push(list);
  }
  return parts;
}

function showAnswer(answer, input, hint, milliseconds) {
  const score = typeof answer.score === "number" ? `, score ${answer.score.toFixed(3)}` : "";
  const by = made("p", "hint", `by ${answer.task}${score}, in ${milliseconds.toFixed(0)} ms`);
  element("answer").replaceChildren(...shownAnswer(answer, input), by);
  const doubt = answer.routing.rejected ? ` ${doubtInWords(answer.routing)} The answer is a guess.` : "";
  showRouting(answer.routing, `${hint ? ` You asked ${hint} to answer.` : ""}${doubt}`, [answer.task]);
  element("compare").hidden = othersOf(answer.task, input).length === 0;
}

// Why an input may belong to no task.
function doubtInWords(routing) {
  if (routing.doubt === "unfamiliar") {
    return "This is unlike everything that the tasks were trained on, so it is probably of none of them.";
  }
  const named = routing.likeliest.map((name) => `${name} ${routing.probabilities[name].toFixed(2)}`);
  return `The router is unsure; likeliest: ${named.join(" or ")}.`;
}

// The other tasks that an input fits.
function othersOf(name, input) {
  return tasks.filter((task) => task.name !== name && (!task.needs_context || input.context)
    && task.takes_choices === Boolean(input.choices));
}

function card(name, answer, input) {
  const node = made("article", "card");
  node.append(made("h3", "", name));
  if (answer.error) node.append(made("p", "error", answer.error));
  else node.append(...shownAnswer({ ...answer, task: name }, input));
  return node;
}

function showAnswers(content, input, milliseconds) {
  const cards = made("div", "cards");
  const found = Object.entries(content.answers);
  for (const [name, answer] of found) cards.append(card(name, answer, input));
  element("answer").replaceChildren(
    cards, made("p", "hint", `${found.length} answers to one text, in ${milliseconds.toFixed(0)} ms`));
  showRouting(content.routing, " All of these tasks were asked.", found.map(([name]) => name));
  element("compare").hidden = true;
}

function showRouting(routing, remark, answering) {
  element("others").replaceChildren();
  element("verdict").textContent = `The router is ${(100 * routing.confidence).toFixed(1)} % sure of `
    + `${routing.predicted_task}.${remark}`;
  const known = Object.keys(routing.probabilities);
  for (const row of [...element("bars").children]) if (!known.includes(row.dataset.task)) row.remove();
  drawBars(element("bars"), Object.entries(routing.probabilities), (task) => answering.includes(task));
}

function showError(place, error) {
  const node = made("p", "error", error.message);
  node.setAttribute("role", "alert");
  place.replaceChildren(node);
}

async function busy(button, work, place) {
  button.disabled = true;
  try { await work(); } catch (error) { showError(place, error); } finally { button.disabled = false; }
}

async function answer() {
  const input = currentInput();
  if (!input.text.trim()) { element("text").focus(); return; }
  const body = question(input);
  await busy(element("send"), async () => {
    const { content, milliseconds } = await request("v1/predict", body);
    asked = { input, task: content.task };
    if (content.answers) showAnswers(content, input, milliseconds);
    else showAnswer(content, input, body.task_hint, milliseconds);
  }, element("answer"));
}

async function compare() {
  const others = othersOf(asked.task, asked.input);
  await busy(element("compare"), async () => {
    const { content } = await request("v1/predict", { inputs: asked.input, tasks: others.map((task) => task.name) });
    const cards = made("div", "cards");
    for (const [name, answer] of Object.entries(content.answers)) cards.append(card(name, answer, asked.input));
    element("others").replaceChildren(cards);
  }, element("others"));
}

function fill(input) {
  element("text").value = input.text;
  element("context").value = input.context ?? "";
  element("instruction").value = input.instruction ?? "";
  element("choices").value = (input.choices ?? []).join("\n");
  element("task").value = "";
  element("more").open = Boolean(input.context || input.instruction || input.choices);
  answer();
}

function offer(task, example) {
  const input = typeof example === "string" ? { text: example } : { ...example, text: example.text ?? example.question };
  const button = made("button", "", task.name);
  button.type = "button";
  button.title = input.text;
  button.addEventListener("click", () => fill(input));
  element("examples").append(button);
  element("examples").parentElement.hidden = false;
}

function choice(text, value, several, title) {
  const option = made("option", "", text);
  option.value = value;
  if (several) option.dataset.tasks = several;
  if (title) option.title = title;
  element("task").append(option);
}

async function start() {
  element("ask").addEventListener("submit", (event) => { event.preventDefault(); answer(); });
  element("ask").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); answer(); }
  });
  element("compare").addEventListener("click", compare);
  try {
    tasks = (await request("v1/tasks")).content;
    for (const task of tasks) {
      choice(task.name, task.name, null, task.description);
      for (const example of task.examples) offer(task, example);
    }
    for (const group of new Set(tasks.map((task) => task.group).filter(Boolean))) {
      choice(`all of the group ${group}`, `group:${group}`, `group:${group}`);
    }
    if (tasks.length > 1) choice("all tasks that fit", "all", "all");
  } catch (error) { showError(element("answer"), error); }
}

start();
