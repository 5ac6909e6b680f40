"""Messages without pictures that models are measured with; none of them is in training."""

from typing import NamedTuple


class Fact(NamedTuple):
    """`answers`: words in lower case, any of which a right reply contains."""

    question: str
    answers: tuple[str, ...]


FACTS = [
    Fact("What is the capital of France?", ("paris",)),
    Fact("What is the capital of Italy?", ("rome",)),
    Fact("What is the capital of Germany?", ("berlin",)),
    Fact("What is the capital of England?", ("london",)),
    Fact("What is the capital of Japan?", ("tokyo",)),
    Fact("What is the capital of Egypt?", ("cairo",)),
    Fact("What is the capital of Russia?", ("moscow",)),
    Fact("What is the capital of China?", ("beijing",)),
    Fact("In which country is the Eiffel Tower?", ("france",)),
    Fact("On which continent is Brazil?", ("south america",)),
    Fact("On which continent is India?", ("asia",)),
    Fact("What language is spoken in Mexico?", ("spanish",)),
    Fact("Who wrote Romeo and Juliet?", ("shakespeare",)),
    Fact("Who painted the Mona Lisa?", ("leonardo", "da vinci")),
    Fact("Who developed the theory of relativity?", ("einstein",)),
    Fact("Who was the first president of the United States?", ("washington",)),
    Fact("What planet do we live on?", ("earth",)),
    Fact("Which planet is known as the red planet?", ("mars",)),
    Fact("Which planet is the largest in the solar system?", ("jupiter",)),
    Fact("What star is at the center of our solar system?", ("sun",)),
    Fact("What gas do plants take in from the air?", ("carbon dioxide", "co2")),
    Fact("What gas do people need to breathe?", ("oxygen",)),
    Fact("What is H2O?", ("water",)),
    Fact("What is the chemical symbol for gold?", ("au",)),
    Fact("At what temperature in degrees Celsius does water boil?", ("100", "hundred")),
    Fact("How many days are in a week?", ("seven", "7")),
    Fact("How many months are in a year?", ("twelve", "12")),
    Fact("How many hours are in a day?", ("24", "twenty four")),
    Fact("How many legs does a dog have?", ("four", "4")),
    Fact("How many legs does an insect have?", ("six", "6")),
    Fact("How many wheels does a bicycle have?", ("two", "2")),
    Fact("What is 2 plus 2?", ("four", "4")),
    Fact("What is 5 plus 3?", ("eight", "8")),
    Fact("What is 10 minus 4?", ("six", "6")),
    Fact("How many sides does a triangle have?", ("three", "3")),
    Fact("What is the opposite of cold?", ("hot", "warm")),
    Fact("What is the opposite of up?", ("down",)),
    Fact("What is the plural of mouse?", ("mice",)),
    Fact("What do bees make?", ("honey",)),
    Fact("What do cows give us to drink?", ("milk",)),
    Fact("What is frozen water called?", ("ice",)),
    Fact("What season comes after winter?", ("spring",)),
    Fact("What day comes after Monday?", ("tuesday",)),
    Fact("What month comes after June?", ("july",)),
    Fact("What color is grass?", ("green",)),
    Fact("What color is snow?", ("white",)),
    Fact("What color do you get when you mix red and yellow?", ("orange",)),
    Fact("What is a baby dog called?", ("puppy", "pup")),
    Fact("What is a baby cat called?", ("kitten",)),
    Fact("Which organ pumps blood through the body?", ("heart",)),
    Fact("Which animal is called the king of the jungle?", ("lion",)),
    Fact("What is the fastest land animal?", ("cheetah",)),
    Fact("What is the largest ocean on Earth?", ("pacific",)),
    Fact("What is the tallest mountain in the world?", ("everest",)),
    Fact("What is the longest wall in the world?", ("great wall", "china")),
    Fact("In which year did the first world war begin?", ("1914",)),
    Fact("What is the currency of the United States?", ("dollar", "dollars", "usd")),
    Fact("What do you call a person who teaches at a school?", ("teacher", "educator")),
    Fact("Which sense do we use our ears for?", ("hearing", "hear", "sound")),
    Fact("What does a thermometer measure?", ("temperature",)),
]

PLAIN_TEXT = (
    "The old mill stands where the river bends to the south. Two hundred years ago, farmers brought their corn here in "
    "carts, and the miller kept every tenth sack for himself. Today the wheel is gone, but the house is still dry, and "
    "a family with three children has moved in.",
    "Salt was once so valuable that whole cities grew rich from it. It kept meat and fish from going bad through the "
    "winter, long before anyone had a refrigerator. Roads were built to carry it from the coast to the mountains, and "
    "some of them are still in use.",
    "To repot a plant, choose a container that is slightly larger than the old one. Put a layer of small stones at the "
    "bottom so that water can drain, add some fresh soil, and set the plant in the middle. Press the soil down gently "
    "and water it well.",
    "A telescope gathers more light than the human eye can. The larger its mirror, the fainter the stars that it can "
    "show. Because the air above us is never quite still, the best places for large telescopes are high mountains and "
    "space itself.",
    "Maria closed the door behind her and listened. The rain had stopped, and somewhere in the house a clock was "
    "ticking. She put her wet coat over the back of a chair, lit the lamp on the table, and began to read the letter "
    "for the second time.",
    "The committee met on Tuesday to discuss the budget for the coming year. Most members agreed that the library "
    "needs a new roof, but there was no agreement on how to pay for it. A decision is expected in March, after the "
    "public has had a chance to comment.",
    "Bats find their way in the dark by listening to echoes. They make very short sounds, too high for us to hear, and "
    "judge from what comes back how far away an insect is and in which direction it flies. A single bat can catch "
    "hundreds of mosquitoes in an hour.",
    "When you learn a new language, it helps to use it every day, even if only for ten minutes. Listening comes before "
    "speaking, and mistakes are part of the process. Many people find that songs and short stories teach them more "
    "than long lists of words.",
    "Bridges fail for many reasons: floods that wash away the ground under them, loads that are heavier than anyone "
    "had planned for, or small cracks that nobody noticed in time. Engineers therefore inspect them regularly, and "
    "close them if there is any doubt.",
    "The bakery on the corner opens at six in the morning. By seven, the smell of fresh bread has reached the end of "
    "the street, and people on their way to work stop to buy a roll and a cup of coffee. On Sundays there is a line "
    "that goes around the block.",
)
"""Written for this purpose, so in no model's training: paragraphs of different kinds, for perplexity."""

MESSAGES = (
    "Why do cats land on their feet?",
    "what should i feed a horse",
    "Is a zebra white with black stripes or black with white stripes?",
    "Write two sentences about a giraffe and a tree.",
    "How do I wash a teddy bear?",
    "My bicycle squeaks. What can I do?",
    "How many slices should I cut a pizza into for five people?",
    "Explain how an airplane stays in the air.",
    "What is the best way to slice a carrot?",
    "can you recommend a good book",
    "Write a short poem about a blue umbrella.",
    "Tell me a story about a bear and a sandwich.",
    "What is the difference between a boat and a ship?",
    "How do traffic lights know when to change?",
    "Who invented the skateboard?",
    "Describe an elephant's trunk in words.",
    "Is broccoli a vegetable or a flower?",
    "My cell phone battery is empty. Help!",
    "How do you tie a tie?",
    "What time do people eat dinner in Spain?",
    "Give me a recipe with bananas.",
    "How do I teach a child to use scissors?",
    "Why is a stop sign red?",
    "Which is heavier, a pound of feathers or a pound of gold?",
    "Translate 'the cat is black' into French.",
    "What rhymes with 'dog'?",
    "Spell 'refrigerator'.",
    "Give me three words that mean 'small'.",
    "What is 9 times 6?",
    "I ate four of my ten cookies. How many do I have?",
    "Explain to me what a computer keyboard is for.",
    "Write a birthday greeting for my boss.",
    "How can I stay awake in the afternoon?",
    "I can't sleep. Any tips?",
    "What do you think about modern art?",
    "What does it mean to draw a conclusion?",
    "He drew a blank. What does that mean?",
    "What is a self-portrait?",
    "How do I learn to draw?",
    "Which pencils are best for sketching?",
    "Who was Picasso?",
    "What is a picture worth, according to the saying?",
    "Name a famous painting.",
    "How does a camera work?",
    "What is a pixel?",
    "Do fish sleep?",
    "How long does it take to boil potatoes?",
    "Name four animals that can fly.",
    "What would you do with a million dollars?",
    "Write a headline about a cow in the city.",
    "Suggest a name for a train robot in a children's book.",
    "Give me one reason to get up early.",
    "Why do people make a wish over a birthday cake?",
    "How much sugar is in an orange?",
    "What is the point of a kite festival?",
)
