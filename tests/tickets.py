"Support tickets that are made up: three classes, and some labels are wrong."
import csv
import random
import sys
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


REPLIES = dict(billing="We are sorry about this charge. Our accounts team looks at it today.",
               technical="Thank you for telling us. Please restart it and try again.",
               account="We can help with your login. Please confirm it by mail first.")


def drawn(rows=300, seed=0, noise=0.04):
    "For each ticket: its text, its class, the class that its label names, and the words that were filled in."
    draw, kinds = random.Random(f"tickets {seed}"), list(WORDS)
    for _ in range(rows):
        kind, opening = draw.choices(kinds, [0.46, 0.32, 0.22])[0], draw.choice(OPEN)
        template, words = draw.choice(WORDS[kind]), {name: draw.choice(some) for name, some in FILL.items()}
        text = opening + template.format(**words) + draw.choice(CLOSE)
        yield text, kind, draw.choice([k for k in kinds if k != kind]) if draw.random() < noise else kind, words


def tickets(rows=300, seed=0, noise=0.04):
    "Texts and their classes."
    return [(text, label) for text, _, label, _ in drawn(rows, seed, noise)]


def answer(kind, text, words):
    "What is answered to a ticket: a sentence for its class, and the thing that it names."
    return REPLIES[kind] + f" It was about {words['thing']}." * (words["thing"] in text)


def replies(rows=300, seed=0, noise=0.04):
    "Texts and what is answered to them."
    return [(text, answer(label, text, words)) for text, _, label, words in drawn(rows, seed, noise)]


def preferences(rows=300, seed=0, noise=0.04):
    "Texts, the answer for their class, and one for another class; some the wrong way round."
    draw, found = random.Random(f"preferences {seed}"), []
    for text, kind, label, words in drawn(rows, seed, noise):
        other = draw.choice([k for k in REPLIES if k != kind]) if label == kind else kind
        found.append((text, answer(label, text, words), answer(other, text, words)))
    return found


def write_rows(path, columns, rows):
    "Rows as a CSV file."
    with Path(path).open("w", newline="", encoding="utf-8") as out: csv.writer(out).writerows([columns, *rows])
    return path


def write_tickets(path, **how):
    "Tickets as a CSV file."
    return write_rows(path, ("text", "category"), tickets(**how))


if __name__ == "__main__":
    "The files that `sftdpo recommend` is measured on: python tests/tickets.py FOLDER"
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        write_tickets(folder / f"tickets-{number}.csv", seed=number)
        write_rows(folder / f"replies-{number}.csv", ("prompt", "completion"), replies(rows=150, seed=number))
        write_rows(folder / f"preferences-{number}.csv", ("prompt", "chosen", "rejected"), preferences(rows=150, seed=number))
