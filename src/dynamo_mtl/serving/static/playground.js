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
  const context = element("context").value, instruction = element("instruction").value, hint = element("task").value;
  const choices = element("choices").value.split("\n").filter((line) => line.trim());
  return {
    text: element("text").value,
    ...(context.trim() ? { context } : {}),
    ...(instruction.trim() ? { instruction } : {}),
    ...(choices.length ? { choices } : {}),
    ...(hint ? { task_hint: hint } : {}),
  };
}

function drawBars(list, shares, chosen) {
  for (const [task, share] of shares) {
    let row = [...list.children].find((node) => node.dataset.task === task);
    if (!row) {
      row = made("li");
      row.dataset.task = task;
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

function showAnswer(answer, input, milliseconds) {
  const place = element("answer");
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
  const score = typeof answer.score === "number" ? `, score ${answer.score.toFixed(3)}` : "";
  parts.push(made("p", "hint", `by ${answer.task}${score}, in ${milliseconds.toFixed(0)} ms`));
  place.replaceChildren(...parts);
  const routing = answer.routing;
  const doubt = routing.rejected ? " This is likely to be an input of none of these tasks, so the answer is a guess." : "";
  const forced = input.task_hint ? ` You asked ${input.task_hint} to answer.` : "";
  element("verdict").textContent = `The router is ${(100 * routing.confidence).toFixed(1)} % sure of `
    + `${routing.predicted_task}.${forced}${doubt}`;
  drawBars(element("bars"), Object.entries(routing.probabilities), (task) => task === answer.task);
  element("compare").hidden = tasks.length < 2;
  element("others").replaceChildren();
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
  await busy(element("send"), async () => {
    const { content, milliseconds } = await request("v1/predict", { inputs: input });
    asked = { input, task: content.task };
    showAnswer(content, input, milliseconds);
  }, element("answer"));
}

async function compare() {
  const others = tasks.filter((task) => task.name !== asked.task && (!task.needs_context || asked.input.context)
    && task.takes_choices === Boolean(asked.input.choices));
  await busy(element("compare"), async () => {
    const inputs = others.map((task) => ({ ...asked.input, task_hint: task.name }));
    const { content } = await request("v1/predict", { inputs });
    const list = made("dl");
    others.forEach((task, place) => {
      list.append(made("dt", "", task.name), made("dd", "", content[place].error ?? said(content[place])));
    });
    element("others").replaceChildren(list);
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

async function start() {
  element("ask").addEventListener("submit", (event) => { event.preventDefault(); answer(); });
  element("ask").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); answer(); }
  });
  element("compare").addEventListener("click", compare);
  try {
    tasks = (await request("v1/tasks")).content;
    for (const task of tasks) {
      const option = made("option", "", task.name);
      option.value = task.name;
      option.title = task.description;
      element("task").append(option);
      for (const example of task.examples) offer(task, example);
    }
  } catch (error) { showError(element("answer"), error); }
}

start();
