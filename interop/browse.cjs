// A headless Chromium that does what its stdin says, a JSON command a line, and answers each with a JSON line.
//   {"open":URL} · {"fill":SELECTOR,"with":TEXT} · {"click":SELECTOR} · {"screenshot":PATH}
//   {"all":SELECTOR}                   the answer is the texts of all its elements
//   {"until":SELECTOR,"has":[TEXT…]}   waits for an element whose text has all of these; the answer is the text
// Usage: browse.cjs TIMEOUT_SECONDS      CHROMIUM: the browser, /usr/bin/chromium if unset
"use strict";
const readline = require("node:readline");
const { chromium } = require("playwright-core");

const timeout = Number(process.argv[2]) * 1000;

async function main() {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
    // It may reach the node under test, and nothing else.
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ],
  });
  const page = await browser.newPage();
  page.setDefaultTimeout(timeout);
  // What the page itself complains of, for the one who reads why a check failed.
  page.on("console", (line) => console.error(`console: ${line.text()}`));
  page.on("pageerror", (error) => console.error(`page: ${error.message}`));
  console.log("{}");
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    try {
      console.log(JSON.stringify({ text: await run(page, command) }));
    } catch (error) {
      console.log(JSON.stringify({ error: error.message.split("\n")[0] }));
    }
  }
  await browser.close();
}

async function run(page, command) {
  if (command.open) await page.goto(command.open);
  else if (command.fill) await page.fill(command.fill, command.with);
  else if (command.click) await page.click(command.click);
  else if (command.screenshot) await page.screenshot({ path: command.screenshot, fullPage: true });
  else if (command.all) return page.locator(command.all).allTextContents();
  else if (command.until) return until(page, command.until, command.has);
  else throw new Error(`unknown command ${JSON.stringify(command)}`);
}

async function until(page, selector, has) {
  try {
    const all = ([selector, has]) => {
      const text = document.querySelector(selector)?.textContent;
      return text !== undefined && has.every((part) => text.includes(part));
    };
    await page.waitForFunction(all, [selector, has]);
  } catch (error) {
    const text = await page.textContent(selector, { timeout: 1000 }).catch(() => "(no such element)");
    throw new Error(`${selector} lacks one of ${JSON.stringify(has)}: ${text}`, { cause: error });
  }
  return page.textContent(selector);
}

main().catch((error) => {
  console.error(error.message);
  process.exit(1);
});
