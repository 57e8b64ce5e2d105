"Support tickets that are made up: three classes, and some labels are wrong."
import csv
import random
from pathlib import Path

WORDS = dict(
    billing=["I was charged twice for {thing} in {month}", "the invoice for {month} shows {amount} euros and I paid {amount}", "please refund {thing}, I cancelled it in {month}",
             "my card was declined when I paid for {thing}", "why does {thing} cost {amount} euros more since {month}", "I need a receipt for {thing} with our company's address",
             "the discount on {thing} is missing from my bill", "your payment page asks for a VAT number that we do not have"],
    technical=["{app} crashes when I open {thing}", "{app} shows error {amount} after the update in {month}", "I cannot upload a file to {thing} with {app}",
               "since {month} {app} is very slow on my {device}", "the screen of {app} stays white on my {device}", "{thing} does not sync with my {device} any more",
               "notifications from {app} stopped in {month}", "the search in {app} finds nothing on my {device}"],
    account=["how do I change the email address of my login", "please delete my profile and all that belongs to {thing}", "I forgot my password and the reset mail never comes to my {device}",
             "someone else logged in to my profile in {month}", "can I give a colleague access to {thing}", "my user name is spelled wrong in {app}",
             "two factor codes do not arrive on my new {device}", "I want to move {thing} to another owner"])

FILL = dict(thing=["the family plan", "the team plan", "the photo album", "the yearly plan", "the storage plan", "the music plan", "our shared folder", "the premium plan"],
            month="January February March April May June July August September October November December".split(),
            amount="12 19 25 39 49 60 75 99 120 404 500".split(), app=["the app", "your app", "the desktop program", "the web page", "the browser version"],
            device=["phone", "tablet", "laptop", "old phone", "work computer", "new phone"])
OPEN = ["", "hello, ", "hi, ", "good morning, ", "dear team, ", "urgent: ", "second message: "]
CLOSE = ["", ", thanks", ", please help", " and nobody answers", ", what can I do", ". This is the second time", ", regards"]


def tickets(rows=300, seed=0, noise=0.04):
    "Texts and their classes."
    draw, kinds, found = random.Random(f"tickets {seed}"), list(WORDS), []
    for _ in range(rows):
        kind = draw.choices(kinds, [0.46, 0.32, 0.22])[0]
        text = draw.choice(OPEN) + draw.choice(WORDS[kind]).format(**{k: draw.choice(v) for k, v in FILL.items()}) + draw.choice(CLOSE)
        label = draw.choice([k for k in kinds if k != kind]) if draw.random() < noise else kind
        found.append((text, label))
    return found


def write_tickets(path, **how):
    "The same as a CSV file."
    with Path(path).open("w", newline="", encoding="utf-8") as out: csv.writer(out).writerows([("text", "category"), *tickets(**how)])
    return path
