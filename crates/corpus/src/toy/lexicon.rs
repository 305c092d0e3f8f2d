//! The words.

/// Whether a name is a woman's or a man's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gender {
    Female,
    Male,
}

/// A person of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Person {
    pub(super) name: &'static str,
    pub(super) gender: Gender,
}

/// A noun in the singular and in the plural.
#[derive(Clone, Copy, Debug)]
pub(super) struct Noun {
    pub(super) one: &'static str,
    pub(super) many: &'static str,
}

/// The third person of a verb: present and past, each singular and plural.
#[derive(Clone, Copy, Debug)]
pub(super) struct Verb {
    pub(super) present: [&'static str; 2],
    pub(super) past: [&'static str; 2],
}

/// What a document is about decides most of its nouns, verbs and adjectives.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) places: &'static [&'static str],
    pub(super) objects: &'static [Noun],
    pub(super) creatures: &'static [Noun],
    pub(super) transitive: &'static [Verb],
    pub(super) intransitive: &'static [Verb],
    pub(super) adjectives: &'static [&'static str],
}

const fn n(one: &'static str, many: &'static str) -> Noun {
    Noun { one, many }
}

const fn v(plural: &'static str, singular: &'static str, past: &'static str) -> Verb {
    Verb { present: [singular, plural], past: [past, past] }
}

pub(super) const FEMALE: [&str; 24] = [
    "Mary", "Anna", "Emma", "Lucy", "Sarah", "Alice", "Julia", "Laura", "Kate", "Jane", "Rose", "Helen", "Linda",
    "Susan", "Karen", "Nancy", "Betty", "Carol", "Diane", "Janet", "Paula", "Tina", "Wendy", "Grace",
];

pub(super) const MALE: [&str; 24] = [
    "John", "Tom", "James", "Peter", "Paul", "Mark", "David", "Robert", "Michael", "Daniel", "Kevin", "Brian",
    "Steven", "George", "Henry", "Frank", "Scott", "Eric", "Jack", "Adam", "Andrew", "Simon", "Luke", "Martin",
];

pub(super) const HELD_OUT_FEMALE: [&str; 8] = ["Ruth", "Ellen", "Martha", "Irene", "Clara", "Nora", "Sophie", "Eva"];

pub(super) const HELD_OUT_MALE: [&str; 8] = ["Oscar", "Victor", "Felix", "Hugo", "Walter", "Ralph", "Leon", "Arthur"];

/// Verbs that a template names by their plural; `be` is `are`.
pub(super) const VERBS: &[Verb] = &[
    Verb { present: ["is", "are"], past: ["was", "were"] },
    v("have", "has", "had"),
    v("do", "does", "did"),
    v("go", "goes", "went"),
    v("see", "sees", "saw"),
    v("like", "likes", "liked"),
    v("lose", "loses", "lost"),
    v("find", "finds", "found"),
    v("meet", "meets", "met"),
    v("leave", "leaves", "left"),
    v("live", "lives", "lived"),
    v("work", "works", "worked"),
    v("need", "needs", "needed"),
    v("say", "says", "said"),
    v("ask", "asks", "asked"),
];

pub(super) const GIVING: &[Verb] = &[
    v("give", "gives", "gave"),
    v("hand", "hands", "handed"),
    v("bring", "brings", "brought"),
    v("offer", "offers", "offered"),
    v("pass", "passes", "passed"),
    v("show", "shows", "showed"),
];

pub(super) const PREPOSITIONS: &[&str] =
    &["to", "at", "in", "near", "behind", "under", "on", "with", "from", "of", "for", "beside"];

pub(super) const PRONOUNS: &[&str] = &[
    "he", "she", "it", "they", "him", "her", "them", "his", "their", "i", "you", "we", "me", "us", "my", "your", "our",
];

pub(super) const MOODS: &[&str] = &["happy", "sad", "tired", "hungry", "angry", "proud", "afraid", "late"];

/// What every topic has.
pub(super) const COMMON: Topic = Topic {
    places: &["store", "park", "house", "station", "hospital"],
    objects: &[n("gift", "gifts"), n("ring", "rings"), n("ball", "balls"), n("box", "boxes"), n("key", "keys")],
    creatures: &[n("friend", "friends"), n("dog", "dogs"), n("bird", "birds"), n("girl", "girls"), n("boy", "boys")],
    transitive: &[v("want", "wants", "wanted"), v("take", "takes", "took"), v("move", "moves", "moved")],
    intransitive: &[v("wait", "waits", "waited"), v("laugh", "laughs", "laughed"), v("sit", "sits", "sat")],
    adjectives: &["big", "small", "old", "new", "good", "red", "green", "strange"],
};

/// In the order of the `Topic...` properties.
pub(super) const TOPICS: [Topic; 6] = [
    Topic {
        places: &["kitchen", "bakery", "market", "restaurant", "cafe"],
        objects: &[
            n("cup", "cups"),
            n("plate", "plates"),
            n("bowl", "bowls"),
            n("spoon", "spoons"),
            n("cake", "cakes"),
            n("apple", "apples"),
            n("pan", "pans"),
            n("drink", "drinks"),
        ],
        creatures: &[n("cook", "cooks"), n("baker", "bakers"), n("cat", "cats"), n("guest", "guests")],
        transitive: &[v("wash", "washes", "washed"), v("taste", "tastes", "tasted"), v("fill", "fills", "filled")],
        intransitive: &[v("eat", "eats", "ate"), v("hum", "hums", "hummed"), v("hurry", "hurries", "hurried")],
        adjectives: &["hot", "sweet", "fresh", "empty"],
    },
    Topic {
        places: &["school", "library", "classroom", "playground", "office"],
        objects: &[
            n("book", "books"),
            n("pencil", "pencils"),
            n("map", "maps"),
            n("bag", "bags"),
            n("letter", "letters"),
            n("ruler", "rulers"),
            n("notebook", "notebooks"),
            n("puzzle", "puzzles"),
        ],
        creatures: &[n("teacher", "teachers"), n("student", "students"), n("child", "children"), n("nurse", "nurses")],
        transitive: &[v("read", "reads", "read"), v("draw", "draws", "drew"), v("copy", "copies", "copied")],
        intransitive: &[
            v("study", "studies", "studied"),
            v("listen", "listens", "listened"),
            v("whisper", "whispers", "whispered"),
        ],
        adjectives: &["clever", "quiet", "difficult", "easy"],
    },
    Topic {
        places: &["beach", "harbor", "island", "ship", "lighthouse"],
        objects: &[
            n("boat", "boats"),
            n("net", "nets"),
            n("shell", "shells"),
            n("rope", "ropes"),
            n("anchor", "anchors"),
            n("bucket", "buckets"),
            n("pearl", "pearls"),
            n("hook", "hooks"),
        ],
        creatures: &[n("sailor", "sailors"), n("gull", "gulls"), n("whale", "whales"), n("crab", "crabs")],
        transitive: &[v("catch", "catches", "caught"), v("pull", "pulls", "pulled"), v("throw", "throws", "threw")],
        intransitive: &[v("swim", "swims", "swam"), v("dive", "dives", "dived"), v("float", "floats", "floated")],
        adjectives: &["wet", "salty", "deep", "blue"],
    },
    Topic {
        places: &["farm", "barn", "field", "garden", "stable"],
        objects: &[
            n("egg", "eggs"),
            n("rake", "rakes"),
            n("basket", "baskets"),
            n("pumpkin", "pumpkins"),
            n("carrot", "carrots"),
            n("saddle", "saddles"),
            n("shovel", "shovels"),
            n("seed", "seeds"),
        ],
        creatures: &[n("farmer", "farmers"), n("horse", "horses"), n("cow", "cows"), n("goat", "goats")],
        transitive: &[v("plant", "plants", "planted"), v("pick", "picks", "picked"), v("carry", "carries", "carried")],
        intransitive: &[v("run", "runs", "ran"), v("sleep", "sleeps", "slept"), v("jump", "jumps", "jumped")],
        adjectives: &["muddy", "brown", "ripe", "strong"],
    },
    Topic {
        places: &["theater", "stage", "hall", "studio", "museum"],
        objects: &[
            n("drum", "drums"),
            n("flute", "flutes"),
            n("violin", "violins"),
            n("guitar", "guitars"),
            n("ticket", "tickets"),
            n("record", "records"),
            n("piano", "pianos"),
            n("bell", "bells"),
        ],
        creatures: &[n("singer", "singers"), n("dancer", "dancers"), n("drummer", "drummers"), n("actor", "actors")],
        transitive: &[v("play", "plays", "played"), v("hear", "hears", "heard"), v("repair", "repairs", "repaired")],
        intransitive: &[v("sing", "sings", "sang"), v("dance", "dances", "danced"), v("smile", "smiles", "smiled")],
        adjectives: &["loud", "soft", "famous", "slow"],
    },
    Topic {
        places: &["mountain", "cabin", "forest", "lake", "village"],
        objects: &[
            n("scarf", "scarves"),
            n("sled", "sleds"),
            n("coat", "coats"),
            n("blanket", "blankets"),
            n("candle", "candles"),
            n("hat", "hats"),
            n("lamp", "lamps"),
            n("axe", "axes"),
        ],
        creatures: &[n("wolf", "wolves"), n("bear", "bears"), n("hunter", "hunters"), n("skier", "skiers")],
        transitive: &[v("wear", "wears", "wore"), v("build", "builds", "built"), v("hide", "hides", "hid")],
        intransitive: &[
            v("shiver", "shivers", "shivered"),
            v("climb", "climbs", "climbed"),
            v("rest", "rests", "rested"),
        ],
        adjectives: &["cold", "white", "icy", "warm"],
    },
];

/// All people whose names may be in any role.
pub(super) fn regulars() -> impl Iterator<Item = Person> {
    people(&FEMALE, &MALE)
}

/// The people who neither give nor receive in a sentence about two named people.
pub(super) fn held_out() -> impl Iterator<Item = Person> {
    people(&HELD_OUT_FEMALE, &HELD_OUT_MALE)
}

fn people(female: &'static [&'static str], male: &'static [&'static str]) -> impl Iterator<Item = Person> {
    let of = |gender| move |name: &&'static str| Person { name, gender };
    female.iter().map(of(Gender::Female)).chain(male.iter().map(of(Gender::Male)))
}
