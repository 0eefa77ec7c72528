"""Two tasks in plain English, made in code: short sentences to classify, and to rewrite exactly.

    topics     the topic of a customer's message, one of eight words      "Is the shop open on Monday?" -> "hours"
    amounts    the date and the amount in a sentence, in one notation
               "On 7 June we paid 980 dollars." -> "06-07 980 USD"

Held-out examples take sentence patterns that no other example has; of `amounts`, also notations of
date and amount that are never together elsewhere.
"""

from collections.abc import Callable, Iterable
from random import Random

from .tasks import Example

ITEMS = ("lamp", "jacket", "phone", "table", "kettle", "bicycle", "tent", "printer", "camera", "sofa", "chair", "desk",
         "mirror", "carpet", "blanket", "pillow", "mattress", "wardrobe", "bookcase", "toaster", "blender", "fridge",
         "freezer", "heater", "fan", "radio", "television", "keyboard", "monitor", "laptop", "tablet", "watch",
         "wallet", "suitcase", "backpack", "helmet", "racket", "guitar", "piano", "drum")
DAYS = tuple(f"{day}{time}" for day in ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday",
                                        "Saturday", "Sunday")
             for time in ("", " morning", " afternoon", " evening"))
CITIES = ("Leeds", "Lyon", "Turin", "Porto", "Graz", "Ghent", "Cork", "Bergen", "Malmo", "Gdansk", "Split", "Brno",
          "Basel", "Bonn", "Nantes", "Seville", "Bari", "Delft", "Bruges", "Bath", "York", "Derry", "Perth", "Tampere",
          "Tartu", "Riga", "Vilnius", "Sofia", "Zagreb", "Patras", "Izmir", "Haifa")
NAMES = ("Anna", "Omar", "Lucy", "Ivan", "Mei", "Pablo", "Nora", "Sam")
PEOPLE = (*NAMES, "Emil", "Rosa", "Jonas", "Aisha", "Viktor", "Lena", "Hugo", "Priya", "Marco", "Ines", "Felix", "Zoe",
          "Karim", "Greta", "Tom", "Yuki", "Dario", "Ella", "Peter", "Salma", "Bruno", "Kate", "Lars", "Mina")

TOPICS = {  # label: patterns; the last HELD_OUT of each are held out
    "delivery": (
        "Where is the {item} I ordered on {day}?", "My {item} has not arrived yet.",
        "When will the {item} reach {city}?", "The driver left my {item} at the wrong door.",
        "Can you send the {item} to {city} by {day}?", "The tracking page still says {city}.",
        "The parcel with the {item} seems to be stuck in {city}.", "Nobody brought the {item} on {day}."),
    "refund": (
        "I want my money back for the {item}.", "Please return what I paid for the {item}.",
        "I sent the {item} back on {day} and got nothing.", "How do I get repaid for a broken {item}?",
        "You still owe me for the {item}.", "Can I hand the {item} back and be paid?",
        "The {item} went back to you last {day}: where is my money?", "I cancelled the {item}, so pay me back."),
    "payment": (
        "My card was declined for the {item}.", "Can I pay for the {item} in two parts?",
        "I was charged twice for the {item}.", "Do you take cash in {city}?",
        "The bill for the {item} is wrong.", "Is there a fee if I pay on {day}?",
        "The bank took the price of the {item} two times.", "May I settle the bill for the {item} by cheque?"),
    "account": (
        "{name} here: I forgot my password again.", "How do I change the name on my profile to {name}?",
        "I cannot log in since {day}.", "Please delete {name} from your system.", "My user name should be {name}.",
        "The site has not known my email since {day}.",
        "Signing in as {name} fails every time.", "I would like to remove {name} from my login."),
    "hours": (
        "Are you open on {day}?", "When does the shop in {city} close?",
        "What time do you start on {day}?", "Is the office in {city} shut on {day}?",
        "Until when can I come by on {day}?", "Do you work at the weekend in {city}?",
        "How early may I visit the store in {city}?", "Will anyone be in the shop late on {day}?"),
    "booking": (
        "I would like a table for two on {day}.", "Please reserve a room in {city} for {name}.",
        "Can I move my appointment to {day}?", "Do you have a free place on {day}?",
        "Put {name} down for the tour of {city}.", "I need to cancel my seat for {day}.",
        "Keep two places in {city} for {name}, please.", "Could we come on {day} instead of the day we agreed?"),
    "complaint": (
        "The {item} broke after one day.", "Your staff in {city} was very rude.",
        "The {item} is not as it was described.", "I am unhappy with the {item}.",
        "The {item} makes a terrible noise.", "This is the worst {item} I ever had.",
        "I waited an hour in {city} and nobody cared.", "What you call a {item} fell apart on {day}."),
    "praise": (
        "I love my new {item}.", "Thank you, {name} was so helpful.",
        "The {item} works better than I hoped.", "Great service in {city} as always.",
        "Please tell {name} that we had a lovely time.", "This {item} is simply perfect.",
        "What a wonderful {item}, well done.", "We were so well looked after by {name} in {city}."),
}
FRAMES = (  # the last HELD_OUT are held out
    "The invoice of {date} asks for {amount}.", "On {date} we paid {amount}.", "Please send {amount} by {date}.",
    "{amount} is due on {date}.", "A ticket for {date} costs {amount}.", "The rent of {date} was {amount}.",
    "We got {amount} from {name} on {date}.", "The deposit of {amount} ends on {date}.",
    "Since {date} {name} owes us {amount}.", "For {amount} you may stay until {date}.")
HELD_OUT = 2
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
          "November", "December")
DATES: tuple[Callable[[int, str], str], ...] = (
    lambda day, month: f"{day} {month}",
    lambda day, month: f"{month} {day}",
    lambda day, month: f"the {day}{ordinal(day)} of {month}",
    lambda day, month: f"{day}. {month[:3]}")
AMOUNTS: tuple[Callable[[int, str], str], ...] = (
    lambda n, currency: f"{SIGNS[currency]}{n:,}",
    lambda n, currency: f"{n} {WORDS[currency]}",
    lambda n, currency: f"{n:,} {currency}",
    lambda n, currency: f"{currency} {n}")
SIGNS = {"USD": "$", "EUR": "€", "GBP": "£"}
WORDS = {"USD": "dollars", "EUR": "euros", "GBP": "pounds"}


def topics(rng: Random, held_out: bool) -> Example:
    label = rng.choice(list(TOPICS))
    pattern = rng.choice(TOPICS[label][-HELD_OUT:] if held_out else TOPICS[label][:-HELD_OUT])
    slots = {"item": ITEMS, "day": DAYS, "city": CITIES, "name": PEOPLE}
    return Example(pattern.format(**{name: rng.choice(values) for name, values in slots.items()}), label)


def amounts(rng: Random, held_out: bool) -> Example:
    day, month = rng.randint(1, 28), rng.randrange(12)
    number, currency = rng.randint(11, 9999), rng.choice(list(SIGNS))
    i = rng.randrange(len(DATES))
    together = [j for j in range(len(AMOUNTS)) if (j == i) == held_out]  # a quarter of the pairs are held out
    date, amount = DATES[i](day, MONTHS[month]), AMOUNTS[rng.choice(together)](number, currency)
    frame = rng.choice(FRAMES[-HELD_OUT:] if held_out else FRAMES[:-HELD_OUT])
    text = frame.format(date=date, amount=amount, name=rng.choice(NAMES))
    return Example(text[0].upper() + text[1:], f"{month + 1:02d}-{day:02d} {number} {currency}")


def distinct(example: Callable[[Random], Example], seed: str, n: int,
             without: Iterable[Example] = ()) -> list[Example]:
    """The first n examples of a seed that differ from one another and from `without`."""
    rng, known, found = Random(seed), {e.input for e in without}, []
    while len(found) < n:
        if (e := example(rng)).input not in known:
            known.add(e.input)
            found.append(e)
    return found


def ordinal(day: int) -> str:
    return "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


SENTENCES = {"topics": topics, "amounts": amounts}
