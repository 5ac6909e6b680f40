"""How people ask: the forms of every question. Each has those that training uses and those that only measurements use,
which are built in other ways. The words of slots are in questions.py."""

from collections.abc import Mapping

from .grammar import Forms, forms_by_split

FORMS: dict[str, Mapping[str, Forms]] = {
    "what one": forms_by_split(
        """
        what {is_this}?
        what {is_this} (supposed to be|meant to be|exactly)?
        (what kind|what sort|which kind) of {things} {is_this}?
        what <see> <here>?
        what is (shown|to be seen|pictured) <here>?
        what does <picture> (show|depict)?
        what is in <picture>?
        what would you call {this}?
        which {things} {be} (shown|pictured) here?
        (name|identify) the {things} <here>.
        <tell> what {this_is}.
        <tell> what <picture> shows.
        <can_you> (tell me|say) what {this_is}?
        <can_you> (name|identify) the {things} <here>?
        do you (know|recognize) what {this_is}?
        <know> what {this_is}.
        """,
        """
        what am i looking at (right now|here|)?
        what did (they|the artist) draw?
        what has been drawn?
        any guesses at what was drawn?
        i cannot make out what was drawn. (help me|any idea)?
        the subject of this drawing (is|would be) what?
        (write|suggest) a label for this drawing.
        what would you write under this drawing, as a label?
        how would you title this drawing?
        """,
    ),
    "what all": forms_by_split(
        """
        what <see> <here>?
        (what|which) (things|objects|items) <see> <here>?
        (what|which) (things|objects|items) are (there|shown) <here>?
        what is (shown|to be seen) <here>?
        what is in <picture>?
        what does <picture> (show|contain)?
        what are the (things|objects) <here>?
        (name|list) (all|) the (things|objects|items) (you see|in <picture>).
        (name|list) everything (you see|in <picture>).
        <tell> what (is in <picture>|<picture> shows|you see here).
        <can_you> (tell me what is in|name everything in|list what is in) <picture>?
        <know> what is in <picture>.
        """,
        """
        what am i looking at (right now|here|)?
        what did (they|the artist) draw?
        which objects have been drawn?
        make an inventory of this drawing.
        run me through this drawing, object by object.
        i need labels for all that was drawn.
        of which objects does this drawing consist?
        """,
    ),
    "what color": forms_by_split(
        """
        what is {color} <here>?
        (what|which) <thing> is {color} <here>?
        what {color} <thing> <see> <here>?
        (name|identify) the {color} (thing|object|one|item) <here>.
        <tell> (what|which <thing>) is {color}.
        <tell> what the {color} (thing|object|one) is.
        <can_you> tell me (what|which <thing>) is {color}?
        what is the {color} (thing|object|one) <here>?
        <know> what is {color}.
        """,
        """
        one of these was painted {color}. which one?
        i am looking for something {color}. any suggestions?
        which of these did (they|the artist) paint {color}?
        {color} was chosen for which of these?
        """,
    ),
    "what beside": forms_by_split(
        """
        what is {rel} {y} <here>?
        what is there {rel} {y} <here>?
        what <see> {rel} {y} <here>?
        (what|which) <thing> (is|do you see) {rel} {y}?
        what (lies|sits|is shown) {rel} {y}?
        (name|identify) the (thing|object) {rel} {y}.
        <tell> what is {rel} {y}.
        <can_you> tell me what is {rel} {y}?
        what is the (thing|object) {rel} {y}?
        {rel} {y}, what (is there|do you see)?
        <know> what is {rel} {y}.
        look at {y}. what is {rel} {it}?
        """,
        """
        (they|the artist) drew something {rel} {y}. any guess at what?
        what did (they|the artist) draw {rel} {y}?
        who is the neighbor of {y} {rel} {it}?
        moving on {rel} {y}, i would come across what?
        something was drawn {rel} {y}. help me out with its name.
        """,
    ),
    "what else": forms_by_split(
        """
        what else is (there|in <picture>) (apart from|besides|other than) {y}?
        what (do you see|can you see|is there) (apart from|besides|other than) {y} <here>?
        (apart from|besides|other than) {y}, what is (there|in <picture>|shown here)?
        what (is|do you see) (together|) with {y} <here>?
        (which|what) other (thing|object|things|objects) <see> <here>, besides {y}?
        is there anything besides {y} <here>, and what is it?
        <tell> what else (there is|is in <picture>) besides {y}.
        """,
        """
        did (they|the artist) draw something in addition to {y}? what?
        leaving {y} aside, what remains?
        i noticed {y} myself. what am i missing?
        what keeps {y} company?
        """,
    ),
    "what place": forms_by_split(
        """
        what is {place} <here>?
        what is there {place}?
        (what|which) <thing> (is|do you see) {place} <here>?
        what <see> {place}?
        what (lies|sits) {place} of <picture>?
        what is shown {place} (of <picture>|)?
        (name|identify) the (thing|object) {place} (of <picture>|).
        <tell> what is {place}.
        <can_you> tell me what is {place} (of <picture>|)?
        {place} (of <picture>|), what (is there|do you see)?
        <know> what is {place}.
        """,
        """
        (they|the artist) drew something {place}. any guess at what?
        what did (they|the artist) draw {place}?
        my eyes are {place}: which object am i looking at?
        something was drawn {place}. help me out with its name.
        """,
    ),
    "exists": forms_by_split(
        """
        is there {a} <here>?
        (do|can) you see {a} <here>?
        (do|can) you see any {any} <here>?
        does <picture> (show|contain|have|include) {a}?
        does <picture> (show|contain|have) any {any}?
        (can|could) you (find|spot|see) {a} <here>?
        {is_any} there any {any} <here>?
        any {any} <here>?
        is {a} (in|part of|shown in) <picture>?
        <tell> (if|whether) there is {a} <here>.
        <tell> (if|whether) you see {a} <here>.
        <can_you> tell me (if|whether) there is {a} <here>?
        <know> (if|whether) there is {a} <here>.
        there is {a} <here>, (right|is there not|correct)?
        check (if|whether) there is {a} <here>.
        """,
        """
        did (they|the artist) draw {a}?
        has {a} been drawn (somewhere|anywhere)?
        am i looking at {a}?
        i am looking for {a}. is this the right drawing?
        (true or false|right or wrong): {a} was drawn.
        i believe one of the objects is {a}. am i right?
        """,
    ),
    "color": forms_by_split(
        """
        what color {be} {x}?
        (what|which) color {be} {x} <here>?
        what color would you say {x} {be}?
        what is the color of {x} <here>?
        (which|what) color was used for {x}?
        {x} {be} (what|which) color?
        in (what|which) color {be} {x} (drawn|painted|shown)?
        <tell> (what|which) color {x} {be}.
        <tell> the color of {x}.
        <can_you> (tell me|say) (what|which) color {x} {be}?
        <can_you> (tell me|name) the color of {x}?
        <know> (what|which) color {x} {be}.
        do you know (what|which) color {x} {be}?
        color of {x}?
        (look at {x}|see {x}): what color {be} {it}?
        """,
        """
        which shade did (they|the artist) choose for {x}?
        {x}: red, green, or something different?
        how would you describe {x}, as far as color goes?
        i am curious about the hue of {x}.
        {x} was painted in which shade?
        to paint {x}, i would need which crayon?
        as for {x}, the shade is what?
        """,
    ),
    "background": forms_by_split(
        """
        what color is the background <here>?
        (what|which) color does the background have?
        what is the color of the background <here>?
        what color is (behind|around) (the things|everything)?
        <tell> (what|which) color the background is.
        <tell> the color of the background.
        <can_you> tell me (what|which) color the background is?
        (describe|name) the color of the background.
        the background is (what|which) color?
        what background (do you see|does <picture> have)?
        """,
        """
        apart from the objects, which shade was the drawing filled with?
        i am curious about the hue of the backdrop.
        the backdrop was painted in which shade?
        """,
    ),
    "count": forms_by_split(
        """
        how many {many} are there <here>?
        how many {many} <see> <here>?
        how many {many} are (in|shown in) <picture>?
        how many {many} does <picture> (show|have|contain)?
        how many {many} can (you find|i see|be seen) <here>?
        how many {many}?
        count the {many} <here>.
        (give me|what is) the number of {many} <here>.
        <tell> how many {many} (there are|you see) <here>.
        <can_you> tell me how many {many} there are <here>?
        <can_you> count the {many} <here>?
        <know> how many {many} there are <here>.
        what number of {many} <see> <here>?
        the number of {many} <here>?
        """,
        """
        what quantity of {many} was drawn?
        please state the quantity of {many}.
        i want a tally of the {many}. what does it come to?
        (they|the artist) drew {many}, but what quantity?
        {many}: none, one, two, or even more?
        run a tally of the {many} for me.
        """,
    ),
    "count all": forms_by_split(
        """
        how many (things|objects|items) are there <here>?
        how many (things|objects|items) <see> <here>?
        how many (things|objects|items) does <picture> (show|have|contain)?
        count (the things|the objects|everything) <here>.
        <tell> how many (things|objects) (there are|you see) <here>.
        what is the (total|overall) number of (things|objects) <here>?
        how many (things|objects) are there (in all|in total|altogether)?
        """,
        """
        what quantity of objects was drawn?
        run a tally of whatever was drawn.
        what does the tally of all objects come to?
        """,
    ),
    "where": forms_by_split(
        """
        where {be} {x} <here>?
        where (do|can) you see {x} <here>?
        where in <picture> {be} {x}?
        where can i (find|see) {x} <here>?
        where exactly {be} {x}?
        <tell> where {x} {be}.
        <tell> where (i can find|you see) {x}.
        <can_you> (tell me|say|describe) where {x} {be}?
        <know> where {x} {be}.
        do you (know|see) where {x} {be}?
        (in which|in what) part of <picture> {be} {x}?
        (find|locate) {x}.
        (give|describe) the position of {x}.
        what is the position of {x} <here>?
        """,
        """
        i am looking for {x}. any directions?
        point me to {x}.
        in which spot did (they|the artist) put {x}?
        help me find {x}, will you?
        which way should i look for {x}?
        direct my eyes to {x}.
        """,
    ),
    "which side": forms_by_split(
        """
        is {x} {word} or {other} {y}?
        is {x} {word} {y} or {other} {it}?
        is {x} {word} or {other} {y} <here>?
        {x} is {word} or {other} {y}?
        (look at {x} and {y}|see {x} and {y}). is {x} {word} or {other} {y}?
        <tell> (if|whether) {x} is {word} or {other} {y}.
        <can_you> tell me (if|whether) {x} is {word} or {other} {y}?
        <know> (if|whether) {x} is {word} or {other} {y}.
        which is it: is {x} {word} or {other} {y}?
        """,
        """
        seen from {y}, {x} lies which way: {word} it, or {other} it?
        did (they|the artist) draw {x} {word} {y}, or rather {other} {it}?
        pick one for {x}: {word} or {other} {y}.
        """,
    ),
    "is where": forms_by_split(
        """
        is {x} {where} <here>?
        (do|can) you see {x} {where}?
        is {x} (shown|placed|located) {where}?
        {x} is {where}, (right|is it not|correct)?
        <tell> (if|whether) {x} is {where}.
        <can_you> tell me (if|whether) {x} is {where}?
        <know> (if|whether) {x} is {where}.
        would you say (that|) {x} is {where}?
        is it (true|correct|right) that {x} is {where}?
        """,
        """
        did (they|the artist) put {x} {where}?
        (true or false|right or wrong): {x} was drawn {where}.
        looking {where}, would i find {x}?
        i believe {x} was put {where}. am i right?
        """,
    ),
    "describe": forms_by_split(
        """
        (describe|caption) <picture>.
        (briefly|shortly|quickly) describe <picture>.
        (give|write) (a|me a) (short|brief|quick) (description|caption) of <picture>.
        (give|write) (a|me a) (description|caption) (for|of) <picture>.
        what does <picture> look like?
        what is going on <here>?
        (how would you|can you|could you|please) describe <picture> (in a few words|in a sentence|)?
        <tell> what <picture> looks like.
        <can_you> describe <picture>?
        summarize <picture>.
        what would be a good caption (for <picture>|)?
        (describe|tell me) what you see <here>.
        """,
        """
        put this drawing into words.
        (imagine|pretend) i cannot see: what was drawn?
        write alt text for this drawing.
        sum this drawing up for me.
        paint me this scene with words.
        """,
    ),
    "describe all": forms_by_split(
        """
        describe <picture> in (detail|full|great detail).
        (give|write) (a|me a) (detailed|long|full|thorough|complete) description of <picture>.
        describe everything (you see|in <picture>).
        (tell me|say) (everything|all) about <picture>.
        what (exactly|) <see> <here>? (give|include) (all|the) details.
        <can_you> describe <picture> (in detail|with all details|in full)?
        describe <picture> with colors and places.
        """,
        """
        put this drawing into words, leaving nothing out.
        write alt text for this drawing, as complete as it gets.
        (imagine|pretend) i cannot see: walk me through every object and where it was drawn.
        """,
    ),
    "two color": forms_by_split(
        """
        what color is the <thing> {rel} {y}?
        (what|which) color is the (thing|object) {rel} {y} <here>?
        <tell> (what|which) color the <thing> {rel} {y} is.
        <can_you> tell me (what|which) color the <thing> {rel} {y} is?
        what is the color of (the thing|the object|what is) {rel} {y}?
        (find|look at) the (thing|object) {rel} {y}. what color is it?
        there is something {rel} {y}. what color is it?
        """,
        """
        which shade did (they|the artist) choose for what was drawn {rel} {y}?
        something was drawn {rel} {y}. i am curious about its hue.
        """,
    ),
    "two count": forms_by_split(
        """
        how many (things|objects) are (there|) {rel} {y} <here>?
        how many (things|objects) <see> {rel} {y}?
        count the (things|objects) {rel} {y}.
        <tell> how many (things|objects) are {rel} {y}.
        <can_you> (count|tell me the number of) the (things|objects) {rel} {y}?
        what is the number of (things|objects) {rel} {y}?
        """,
        """
        what quantity of objects was drawn {rel} {y}?
        run a tally of whatever was drawn {rel} {y}.
        """,
    ),
    "two is": forms_by_split(
        """
        is the <thing> {rel} {y} {what}?
        is (what is|what you see) {rel} {y} {what}?
        <tell> (if|whether) the <thing> {rel} {y} is {what}.
        <can_you> tell me (if|whether) the <thing> {rel} {y} is {what}?
        would you say (that|) the (thing|object) {rel} {y} is {what}?
        the (thing|object) {rel} {y} is {what}, (right|correct)?
        (find|look at) the (thing|object) {rel} {y}. is it {what}?
        """,
        """
        (true or false|right or wrong): what was drawn {rel} {y} is {what}.
        something was drawn {rel} {y}. might that be {what}?
        """,
    ),
    "same color": forms_by_split(
        """
        do {x} and {y} have the same color <here>?
        are {x} and {y} the same color <here>?
        are {x} and {y} of the same color?
        is the color of {x} the same as the color of {y}?
        <tell> (if|whether) {x} and {y} have the same color.
        <can_you> tell me (if|whether) {x} and {y} are the same color?
        """,
        """
        did (they|the artist) paint both {x} and {y} in one shade?
        would one crayon be enough to paint both {x} and {y}?
        """,
    ),
    "bigger": forms_by_split(
        """
        (which|what) is (bigger|larger), {x} or {y}?
        (which one|which of the two) is (bigger|larger) <here>: {x} or {y}?
        is {x} or {y} (bigger|larger) <here>?
        <tell> which is (bigger|larger), {x} or {y}.
        <can_you> tell me which is (bigger|larger), {x} or {y}?
        (compare|look at) {x} and {y}. which is (bigger|larger)?
        what takes up more room <here>, {x} or {y}?
        """,
        """
        by size, does {x} beat {y}, or {y} beat {x}?
        did (they|the artist) draw {x} or {y} with the greater size?
        """,
    ),
    "more": forms_by_split(
        """
        are there more {many} than {others} <here>?
        <see> more {many} than {others} <here>?
        does <picture> (show|have) more {many} than {others}?
        is the number of {many} (larger|greater|higher) than the number of {others}?
        <tell> (if|whether) there are more {many} than {others}.
        <can_you> tell me (if|whether) there are more {many} than {others}?
        are there fewer {others} than {many} <here>?
        """,
        """
        do the {many} outnumber the {others}?
        by number, do the {many} beat the {others}?
        """,
    ),
    # What follows on another question.
    "it color": forms_by_split(
        """
        (and|) what color {be} {it}?
        (and|) which color {be} {it}?
        what color would you say {it} {be}?
        (and|) in what color {be} {it} drawn?
        (and|) <tell> what color {it} {be}.
        <can_you> tell me what color {it} {be}?
        {it} {be} what color?
        """,
        """
        and the shade?
        which crayon was used there?
        """,
    ),
    "it where": forms_by_split(
        """
        (and|) where {be} {it} <here>?
        (and|) where exactly {be} {it}?
        (and|) <tell> where {it} {be}.
        <can_you> tell me where {it} {be}?
        """,
        """
        and in which spot?
        which way should i look?
        """,
    ),
    "and": forms_by_split(
        """
        and {x}?
        (and|) what about {x}?
        (and|) how about {x}?
        """,
        """
        same question for {x}.
        now {x}, in the same way.
        """,
    ),
    # Questions of yes or no, before a reason is asked for: see REASONS.
    "is color": forms_by_split(
        """
        {be} {x} {color} <here>?
        {x} {be} {color}, (right|correct)?
        is the color of {x} {color}?
        would you say (that|) {x} {be} {color}?
        is it (true|right|correct) that {x} {be} {color}?
        do you think (that|) {x} {be} {color}?
        """,
        """
        did (they|the artist) paint {x} {color}?
        (true or false|right or wrong): {x} was painted {color}.
        """,
    ),
    "number": forms_by_split(
        """
        {is_n} there {bound} {number} {many} <here>?
        <see> {bound} {number} {many} <here>?
        does <picture> (show|have|contain) {bound} {number} {many}?
        is it (true|right|correct) that there {is_n} {bound} {number} {many} <here>?
        do you think (that|) there {is_n} {bound} {number} {many} <here>?
        """,
        """
        (true or false|right or wrong): {bound} {number} {many} {was_n} drawn.
        did (they|the artist) draw {bound} {number} {many}?
        """,
    ),
    "alone": forms_by_split(
        """
        {be} {x} alone <here>?
        {be} {x} without company <here>?
        {be} {x} (all|everything) (you see|there is|that is shown) <here>?
        does <picture> show nothing (but|besides|other than) {x}?
        is it (true|right|correct) that there is nothing (but|besides) {x} <here>?
        """,
        """
        was nothing drawn to keep {x} company?
        did (they|the artist) draw {x} and leave it at that?
        """,
    ),
    "company": forms_by_split(
        """
        is there anything (besides|apart from|other than) {x} <here>?
        is there (something|anything) else <here>, besides {x}?
        does <picture> show anything (but|besides|other than) {x}?
        <see> anything (besides|apart from) {x} <here>?
        """,
        """
        did (they|the artist) draw something in addition to {x}?
        was something drawn to keep {x} company?
        """,
    ),
}

# How a reason is asked for, after a question of yes or no.
REASONS = forms_by_split(
    """
    why?
    and why?
    how (do you know|can you tell|can you see that)?
    explain (why|your answer|how you know|).
    (please|) give (a|me a|your) reason.
    (justify|explain) your answer.
    why (do you think so|or why not)?
    (tell me|say) why.
    what makes you (think|say) so?
    with a reason, please.
    answer with a reason.
    """,
    """
    back that up.
    what supports your verdict?
    on what grounds?
    show me the evidence.
    """,
)
TONES = {
    "word": forms_by_split(
        """
        (answer|reply|respond|say it) (in|with) (one word|a single word).
        (in|with) one word.
        one word (only|answer|is enough).
        just (one|a single) word, please.
        use (one|a single) word.
        """,
        """
        a lone word will do.
        limit yourself to one word.
        """,
    ),
    "short": forms_by_split(
        """
        (answer|reply|respond) (briefly|shortly|in a few words|as shortly as you can).
        (keep it|be) (short|brief).
        (a|give me a) short answer(, please|).
        just the answer(, please|).
        no (full|whole) sentence(, please|).
        in (short|brief).
        """,
        """
        spare me long phrases.
        the bare facts will do.
        """,
    ),
    "sentence": forms_by_split(
        """
        (answer|reply|respond) (in|with) a (full|complete|whole) sentence.
        (in|use|write|give me) (a|one) (full|complete|whole) sentence(, please|).
        full sentence(s|), please.
        (say|put) it in a sentence.
        """,
        """
        i prefer proper sentences.
        phrase that as a proper sentence.
        """,
    ),
}
TONE_SHARES = {"word": 0.12, "short": 0.12, "sentence": 0.12}

RELATION_WORDS = {
    "left of": ("to the left of", "left of", "on the left of", "on the left side of", "to the left of"),
    "right of": ("to the right of", "right of", "on the right of", "on the right side of", "to the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under", "beneath", "underneath"),
}
SAID_RELATION = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
PLACE_WORDS = {
    "on the left": ("on the left", "on the left side", "on the left-hand side", "at the left"),
    "on the right": ("on the right", "on the right side", "on the right-hand side", "at the right"),
    "at the top": ("at the top", "in the upper part", "at the upper edge", "in the top half"),
    "at the bottom": ("at the bottom", "in the lower part", "at the lower edge", "in the bottom half"),
    "in the middle": ("in the middle", "in the center", "at the center"),
    "at the top left": ("at the top left", "in the top left corner", "in the top left", "in the upper left"),
    "at the top right": ("at the top right", "in the top right corner", "in the top right", "in the upper right"),
    "at the bottom left": ("at the bottom left", "in the bottom left corner", "in the lower left", "at the lower left"),
    "at the bottom right": ("at the bottom right", "in the bottom right corner", "in the lower right"),
}
