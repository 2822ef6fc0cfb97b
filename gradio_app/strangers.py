"""The pages for people who are not let in (yet): plain HTML without any part of the app, in their language."""

from __future__ import annotations

import html
import json

from . import words

STYLE = (
    "body{font:16px/1.6 system-ui,sans-serif;max-width:34rem;margin:12vh auto;padding:0 1.5rem;background:#f7f6f4;"
    "color:#1f1d1a}h1{font-size:1.4rem}a,button{display:inline-block;margin:.5rem .75rem 0 0;padding:.5rem 1rem;"
    "border-radius:8px;border:1px solid #0f6e66;color:#0b574f;background:none;font:inherit;text-decoration:none;"
    "cursor:pointer}.first{background:#0f6e66;color:#fff}label{display:grid;gap:.25rem;margin:.75rem 0;max-width:20rem}"
    "input{font:inherit;padding:.45rem .6rem;border-radius:8px;border:1px solid #8a847b;background:#fff;color:inherit}"
    "[role=alert]{color:#a72b22;min-height:1.6em}button:disabled{opacity:.5}"
    "@media(prefers-color-scheme:dark){body{background:#151413;color:#efece7}a,button{color:#7ccfc4}"
    ".first{color:#fff}input{background:#1e1d1b;border-color:#6b665f}[role=alert]{color:#f2938b}}"
)
SIGN_IN = """
const form = document.forms[0], said = document.querySelector("[role=alert]"), button = form.querySelector("button");
form.addEventListener("submit", async (e) => {
  e.preventDefault();
  button.disabled = true;
  said.textContent = "";
  try {
    const answer = await fetch("login", { method: "POST", body: new URLSearchParams(new FormData(form)) });
    if (answer.ok) return location.reload();
    said.textContent = answer.status === 400 ? SAYS.wrong : SAYS.failed;
  } catch (error) {
    said.textContent = SAYS.failed;
  }
  button.disabled = false;
  form.elements.password.select();
});
"""


def language(accepted: str) -> str:
    """The first language of an Accept-Language header that there are texts in, else English."""
    for wish in accepted.split(","):
        short = wish.strip()[:2].lower()
        if short == "en":
            break
        if found := next((name for name in words.LANGUAGES if name[:2] == short), ""):
            return found
    return "en"


def page(body: str, tongue: str = "en", script: str = "") -> str:
    """A whole page. body: HTML, with all that comes from outside escaped."""
    code = f"<script>{script}</script>" if script else ""
    return (
        f"<!doctype html><html lang={tongue}><meta charset=utf-8><title>Tuner</title>"
        "<meta name=viewport content='width=device-width,initial-scale=1'><link rel=icon href=favicon.ico>"
        f"<style>{STYLE}</style><main><h1>Tuner</h1>{body}</main>{code}</html>"
    )


TEXTS = {
    "whose": "This app belongs to somebody. Its password was printed where it was started.",
    "user": "User",
    "password": "Password",
    "enter": "Sign in",
    "wrong": "That is not the password. Each wrong try makes the next one wait longer.",
    "failed": "The app did not answer as it should. Try again in a moment.",
}


def sign_in(user: str, accepted: str = "") -> str:
    """Where the password is asked for. user: the only name that there is. accepted: an Accept-Language header."""
    tongue = language(accepted)
    told = words.catalogue(tongue) if tongue != "en" else {}
    says = {key: told.get(text, text) for key, text in TEXTS.items()}
    shown = {key: html.escape(text) for key, text in says.items()}
    body = (
        f"<p>{shown['whose']}</p><form method=post action=login><label>{shown['user']}"
        f"<input name=username autocomplete=username required value={html.escape(user)}></label>"
        f"<label>{shown['password']}"
        "<input name=password type=password autocomplete=current-password required autofocus></label>"
        f"<p role=alert></p><button class=first>{shown['enter']}</button></form>"
    )
    return page(body, tongue, f"const SAYS = {json.dumps(says)};{SIGN_IN}".replace("</", "<\\/"))
