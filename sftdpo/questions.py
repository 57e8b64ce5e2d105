#| export
import random, re


#| export
_topics = dict(
    skill='Spanish|chess|algebra|the piano|photography|Python|Japanese|drawing|the guitar|statistics|Latin|knitting|swimming|the violin|poetry|French|carpentry|geometry|the drums|typing|Arabic|singing|welding|the flute|juggling|Russian|sailing|calculus|the cello|origami|German|fencing|pottery|the harp|magic|Greek|skiing|logic|the trumpet|sewing|Korean|surfing|Java|the banjo|sculpture|Polish|rowing|accounting|the organ|calligraphy',
    city='London|Paris|Rome|Berlin|Madrid|Vienna|Prague|Lisbon|Athens|Dublin|Oslo|Warsaw|Boston|Chicago|Denver|Seattle|Toronto|Delhi|Mumbai|Tokyo|Seoul|Sydney|Cairo|Lagos|Lima|Havana|Geneva|Munich|Naples|Venice|Milan|Krakow|Porto|Glasgow|Leeds|Dallas|Austin|Phoenix|Montreal|Nairobi|Hamburg|Helsinki|Budapest|Istanbul|Marseille|Antwerp|Salzburg|Brighton|Memphis|Kyoto',
    food='rice|lentils|salmon|spinach|mushrooms|pancakes|chicken soup|bread|potatoes|eggs|beans|pasta|cheese|carrots|garlic|tomato sauce|tofu|cabbage|shrimp|noodles|oats|pumpkin|onions|trout|yogurt|apple pie|lamb|cherries|peppers|dumplings|broccoli|honey|bacon|figs|waffles|beef stew|quinoa|asparagus|mussels|plums|turkey|walnuts|cauliflower|jam|peaches|barley|olives|sausages|leeks|goose',
    service='Facebook|Gmail|Twitter|Netflix|Instagram|Amazon|Skype|Spotify|Uber|PayPal|LinkedIn|Snapchat|YouTube|Reddit|Dropbox|eBay|Pinterest|Yahoo|Zoom|Tumblr|WhatsApp|Slack|Telegram|Discord|Airbnb|Steam|Quora|Outlook|Hulu|Twitch|GitHub|Signal|Venmo|Lyft|Etsy|Trello|Expedia|Flickr|Tinder|Medium|Coursera|Evernote|Vimeo|Yelp|Fitbit|Shopify|Kindle|Patreon|Duolingo|Audible',
    animal='dog|cat|rabbit|parrot|horse|hamster|turtle|goat|pig|duck|snake|ferret|canary|donkey|goldfish|mouse|lizard|sheep|cow|pigeon|hedgehog|frog|falcon|camel|pony|spider|crow|rat|llama|swan|monkey|otter|owl|fox|raccoon|squirrel|gecko|mule|bull|peacock|crab|beaver|finch|wolf|toad|badger|raven|ox|lynx|hawk',
    job='doctor|lawyer|teacher|pilot|nurse|chef|banker|judge|painter|plumber|farmer|writer|dentist|soldier|engineer|baker|actor|carpenter|librarian|surgeon|journalist|detective|barber|firefighter|tailor|translator|architect|chemist|butcher|singer|economist|sailor|gardener|diplomat|electrician|historian|biologist|cashier|dancer|astronaut|mechanic|optician|florist|editor|geologist|miner|waiter|jeweller|potter|psychologist',
    illness='a cold|acne|back pain|a fever|anxiety|headaches|asthma|a cough|stress|diabetes|dandruff|insomnia|flu|nausea|heartburn|a sore throat|allergies|migraine|toothache|anemia|eczema|hiccups|cramps|obesity|malaria|sunburn|measles|gout|a rash|vertigo|arthritis|pneumonia|bad breath|a stroke|ulcers|depression|hay fever|fatigue|bronchitis|warts|scurvy|a hangover|blisters|cholera|snoring|tinnitus|lice|rabies|hernia|jet lag',
    activity='running|football|tennis|yoga|boxing|cycling|basketball|hiking|a marathon|golf|volleyball|climbing|dancing|cricket|a long flight|rugby|judo|an exam|wrestling|surgery|hockey|karate|badminton|a job interview|baseball|diving|skating|a wedding|archery|pilates|squash|a night shift|kayaking|a date|weightlifting|polo|a road trip|gymnastics|snowboarding|a blood test|handball|a triathlon|softball|a concert|paddling|an operation|horse riding|a fast|bowling|a race')


#| export
_shares = dict(train=(0, 12), choose=(12, 15), test=(15, 20))

def topics(
    split:str, # "train", "choose" or "test"
) -> dict[str, list[str]]: # kind -> topics; the three splits share none
    "The topics of one split: 60 % of each list train, 15 % choose, 25 % judge."
    if split not in _shares: raise ValueError(f'split is {split!r}; use one of {", ".join(_shares)}')
    low, high = _shares[split]
    lists = {kind: words.split('|') for kind, words in _topics.items()}
    return {kind: [word for i, word in enumerate(words) if low <= i*7 % 20 < high] for kind, words in lists.items()}


#| export
_openings = dict(HOW=('How do I', 'How can I', 'How should I', 'How could I'),
                 WAY=('What is the best way to', 'What is a good way to', 'What would be the best way to'))

_intents = dict(
    skill=dict(
        learn='HOW learn {x}?|WAY learn {x}?|HOW start learning {x}?|What should I do to get good at {x}?',
        teach='HOW teach {x}?|WAY teach {x}?|HOW start teaching {x}?|What should I do to give lessons in {x}?',
        time='How long does it take to learn {x}?|How much time do I need to learn {x}?|In how many months can I get good at {x}?'),
    city=dict(
        best='HOW get from {x} to {y}?|WAY travel from {x} to {y}?|HOW go to {y} from {x}?|WAY get to {y} if I start in {x}?',
        time='How long does it take to get from {x} to {y}?|How much time do I need to travel from {x} to {y}?|How long does it take to go to {y} from {x}?',
        prefer='Why do people like {x} more than {y}?|Why is {x} liked more than {y}?|Why do people like {y} less than {x}?'),
    food=dict(
        cook='HOW cook {x}?|WAY cook {x}?|HOW make {x} at home?|What is a good recipe for {x}?',
        store='HOW store {x}?|WAY store {x}?|HOW keep {x} fresh at home?|How long can I keep {x} at home?',
        healthy='Is it healthy to eat {x}?|Is eating {x} good for me?|What are the health benefits of {x}?'),
    service=dict(
        delete='HOW delete my {x} account?|WAY delete my {x} account?|HOW close my account on {x}?|What should I do to leave {x}?',
        create='HOW create my {x} account?|WAY create my {x} account?|HOW open my account on {x}?|What should I do to join {x}?',
        password='HOW change my {x} password?|WAY change my {x} password?|HOW get a new password on {x}?'),
    animal=dict(
        feed='HOW feed my {x}?|WAY feed my {x}?|What should I give my {x} to eat?|What does a {x} eat?',
        train='HOW train my {x}?|WAY train my {x}?|What should I do to teach my {x} to obey?',
        wash='HOW wash my {x}?|WAY wash my {x}?|What should I do to keep my {x} clean?'),
    job=dict(
        become='HOW become a {x}?|WAY become a {x}?|What should I do to get a job as a {x}?|HOW start working as a {x}?',
        hire='HOW hire a {x}?|WAY hire a {x}?|What should I do to find a good {x}?|HOW find a good {x}?',
        salary='How much does a {x} earn?|How much money does a {x} make?|What is the salary of a {x}?'),
    illness=dict(
        cure='HOW cure {x}?|WAY cure {x}?|HOW get rid of {x}?|What should I do to get rid of {x}?',
        prevent='HOW prevent {x}?|WAY prevent {x}?|HOW avoid {x}?|What should I do to avoid {x}?',
        cause='What causes {x}?|What is the cause of {x}?|Why do people get {x}?'),
    activity=dict(
        before='What should I eat before {x}?|What is a good meal before {x}?|What is the best thing to eat before {x}?',
        after='What should I eat after {x}?|What is a good meal after {x}?|What is the best thing to eat after {x}?',
        wear='What should I wear for {x}?|What are good clothes for {x}?|What is the best thing to wear for {x}?'))


#| export
def _wordings(
    text:str, # wordings with HOW or WAY, separated by |
) -> list[str]: # each wording with each of its openings
    "Write out the openings."
    out = []
    for wording in text.split('|'):
        opening = wording.split(' ')[0]
        out.append([wording.replace(opening, o, 1) for o in _openings.get(opening, [opening])])
    return out

_wording_table = {kind: {intent: _wordings(text) for intent, text in intents.items()} for kind, intents in _intents.items()}


#| export
def _words(text): return set(re.findall(r'[a-z]+', text.lower()))

def word_overlap(
    question1:str, # one question
    question2:str, # another
) -> float: # between 0 and 1
    "Shared words divided by all words of the two questions (Jaccard)."
    a, b = _words(question1), _words(question2)
    return len(a & b) / max(1, len(a | b))


#| export
def _ask(rng, kind, intent, topic, avoid=()):
    "One wording of an intent about a topic, chosen evenly over wordings, then over openings."
    wording = rng.choice(_wording_table[kind][intent])
    question = rng.choice(wording).replace('{x}', topic[0]).replace('{y}', topic[-1])
    question = re.sub(r'\ba (?=[aeio]|u[^s])', 'an ', question)
    return question if question not in avoid else _ask(rng, kind, intent, topic, avoid)

def _draw_topic(rng, kind, pool):
    return tuple(rng.sample(pool[kind], 2)) if kind == 'city' else (rng.choice(pool[kind]),)

def _negative(rng, kind, intent, topic, pool):
    "Intent and topic of a question that asks something else."
    intents, change = list(_wording_table[kind]), rng.random()
    if kind == 'city' and change < .2: return intent, topic[::-1]
    if change < .35: return rng.choice([i for i in intents if i != intent]), topic
    other = _draw_topic(rng, kind, pool)
    if kind == 'city' and rng.random() < .5: other = (topic[0], other[1])
    if other == topic or other[0] == other[-1] and kind == 'city': return _negative(rng, kind, intent, topic, pool)
    return (rng.choice(intents) if change > .95 else intent), other


#| export
def generated_questions(
    split:str, # "train", "choose" or "test": no topic is in two of them
    size:int, # how many pairs; the first pairs of a seed do not depend on it
    seed:int=0, # another seed, other pairs
) -> list[tuple[str, str, int]]: # question, question, label: 1 when both ask the same
    "Labelled pairs of questions, half of each class."
    rng, pool = random.Random(f'{split} {seed}'), topics(split)
    kinds, pairs, seen = list(_wording_table), [], set()
    while len(pairs) < size:
        kind = rng.choice(kinds)
        intent, topic = rng.choice(list(_wording_table[kind])), _draw_topic(rng, kind, pool)
        question = _ask(rng, kind, intent, topic)
        same = _ask(rng, kind, intent, topic, avoid=(question,))
        others = [_ask(rng, kind, *_negative(rng, kind, intent, topic, pool), avoid=(question,)) for _ in range(4)]
        overlap = word_overlap(question, same)
        other = min(others, key=lambda text: abs(word_overlap(question, text) - overlap))
        if (question, same) in seen or (question, other) in seen: continue
        seen |= {(question, same), (question, other)}
        pairs += rng.sample([(question, same, 1), (question, other, 0)], 2)
    return pairs[:size]


#| export
def _made_up(rng):
    "A name that is none: two or three syllables."
    parts = [rng.choice('bdfgklmnprstvz') + rng.choice('aeiou') + rng.choice(['', '', 'n', 'r', 'l', 's']) for _ in range(rng.choice((2, 2, 3)))]
    return ''.join(parts).capitalize() if rng.random() < .5 else ''.join(parts)

def unlabelled_lists(
    size:int, # how many lists
    seed:int=0, # another seed, other lists
) -> list[list[str]]: # each list ends with its first question that came before
    "Lists of questions on train topics and made-up names, for pretraining."
    rng, pool, lists = random.Random(f'unlabelled {seed}'), topics('train'), []
    while len(lists) < size:
        kind = rng.choice(list(_wording_table))
        names = {kind: [_made_up(rng) for _ in range(3)]} if rng.random() < .5 else pool
        drawn = [_draw_topic(rng, kind, names) for _ in range(rng.choice((1, 2, 2, 3)))]
        if kind == 'city': drawn.append(drawn[0][::-1])
        intents = rng.sample(list(_wording_table[kind]), rng.choice((1, 2, 2, 3)))
        questions = []
        while len(questions) < 8:
            if questions and rng.random() < .3: questions.append(rng.choice(questions)); break
            question = _ask(rng, kind, rng.choice(intents), rng.choice(drawn))
            repeated = question in questions
            questions.append(question)
            if repeated: break
        else: questions.append(rng.choice(questions))
        lists.append(questions)
    return lists


#| export
def unlabelled_questions(
    size:int, # how many questions
    seed:int=0, # another seed, other questions
) -> list[str]: # questions in the order of their lists
    "The questions of `unlabelled_lists`, one after the other."
    questions = [question for one in unlabelled_lists(size, seed) for question in one]
    return questions[:size]

