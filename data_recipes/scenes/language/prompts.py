"""Everyday prompts without a picture, by kind and without answers: a pretrained backbone answers them itself, and its
answers are the targets that keep what it knew. Many name things of the scenes world, so that a name alone is no
request to draw."""

PROMPTS = {
    kind: tuple(line.strip() for line in lines.strip().splitlines())
    for kind, lines in {
        "science": """
            Why is the sky blue?
            How do plants make their food?
            What causes the seasons?
            Explain gravity to a child.
            Why does ice float on water?
            What is the difference between weather and climate?
            how do magnets work
            What are atoms made of?
            Why do we see lightning before we hear thunder?
            What is a black hole?
            How does a rainbow form?
            what is photosynthesis?
            Why do leaves change color in autumn?
            What is evolution, in simple words?
            How do vaccines work?
            Why is the sea salty?
            What makes bread rise?
            How do bees make honey?
            What is static electricity?
            why do onions make us cry
            """,
        "animals": """
            What do giraffes eat?
            How long do elephants live?
            Why do zebras have stripes?
            How fast can a horse run?
            What sound does a sheep make?
            Is a bear dangerous to people?
            How do I train a dog to sit?
            Why do cats purr?
            Where do birds go in winter?
            How much milk does a cow give in a day?
            Can dogs eat chocolate?
            How do I take care of a kitten?
            What is the difference between a wolf and a dog?
            Why do dogs wag their tails?
            Tell me three facts about elephants.
            do bears sleep all winter?
            How many legs does a spider have?
            What is a group of sheep called?
            Name five animals that live in Africa.
            What is the largest land animal?
            """,
        "geography": """
            What is the capital of Spain?
            Which river runs through Cairo?
            Name three countries in South America.
            What language do people speak in Austria?
            Where is Mount Everest?
            Which ocean lies between Europe and America?
            What is the largest country in the world?
            Name a city in Canada.
            On which continent is Kenya?
            what is the capital of norway
            Which countries border Switzerland?
            What currency is used in Japan?
            Is Greenland part of Europe?
            What is Venice famous for?
            How long is the river Nile?
            What is the smallest country in the world?
            Name two islands in the Mediterranean Sea.
            Which desert is the largest?
            """,
        "history": """
            Who was the first person on the moon?
            When did the Second World War end?
            Who invented the telephone?
            What was the Roman Empire?
            Who built the pyramids?
            Why did the Titanic sink?
            Who was Cleopatra?
            What happened in 1789 in France?
            Tell me about the Middle Ages in two sentences.
            Who discovered penicillin?
            When was the printing press invented?
            What was the Silk Road?
            Who was Leonardo da Vinci?
            What did people eat in ancient Egypt?
            How did people tell the time before clocks?
            when was the bicycle invented?
            """,
        "arithmetic": """
            What is 7 plus 5?
            What is 12 times 3?
            What is half of 90?
            how much is 15 minus 8
            What is 100 divided by 4?
            Is 17 a prime number?
            What is the square root of 49?
            How many minutes are in two hours?
            If I have three apples and eat one, how many are left?
            A pizza has eight slices. Two people share it. How many slices does each get?
            What is 20 percent of 50?
            How many sides does a hexagon have?
            What comes next: 2, 4, 6, 8?
            How many days are in a leap year?
            Which is larger, 3/4 or 2/3?
            Add 21 and 34.
            How many seconds are in a minute?
            If a train leaves at 3 and arrives at 5, how long does the trip take?
            """,
        "words": """
            What is the opposite of "hot"?
            Give me a synonym for "happy".
            What does "ambiguous" mean?
            Use the word "curious" in a sentence.
            What is the plural of "goose"?
            How do you spell "necessary"?
            What rhymes with "cat"?
            What is the past tense of "go"?
            Explain the saying "break a leg".
            What is the difference between "its" and "it's"?
            Give me three adjectives for a rainy day.
            what does "per se" mean
            What is a metaphor? Give an example.
            Make a sentence with the words dog, bed and morning.
            What do we call a person who writes books?
            Is "quickly" an adverb?
            Name five words that start with B.
            What is another word for "big"?
            """,
        "translation": """
            How do you say "thank you" in French?
            Translate "good morning" into Spanish.
            What does "Danke" mean?
            How do you say "cat" in Italian?
            Translate "I am hungry" into German.
            What does "bonjour" mean in English?
            How do I say "please" in Portuguese?
            Translate into French: the book is on the table.
            What is the German word for water?
            Say "hello" in three languages.
            """,
        "stories": """
            Tell me a short story about a dog that lost its bone.
            Write a two-sentence story about a clock that ran backwards.
            Tell me a bedtime story.
            Write the first line of a mystery novel.
            Make up a story about a brave umbrella.
            Write a short dialogue between a cat and a bird.
            tell me a story with a happy end
            Write a very short story about a train at night.
            Invent a fairy tale about a purple elephant.
            Continue the story: It was raining, and the door was open.
            Describe a morning in a small village.
            Write a letter from a teddy bear to its owner.
            Tell me a story about friendship in five sentences.
            Write a scene in which two people meet on a bus.
            """,
        "poems": """
            Write a poem about the sea.
            Write a haiku about autumn.
            Make a rhyme about a cake.
            Write a limerick about a cow.
            Write four lines about a red car.
            write me a love poem
            Write a birthday verse for my grandmother.
            Write a short poem about two birds.
            Make up a lullaby.
            Write a funny verse about broccoli.
            """,
        "cooking": """
            How do I boil an egg?
            Give me a simple recipe for pancakes.
            What can I cook with carrots and potatoes?
            How long do I cook pasta?
            How do you make a sandwich?
            What goes well with broccoli?
            How do I bake a chocolate cake?
            What is a good breakfast?
            how do i make tea
            How can I tell if a banana is ripe?
            What is in a hot dog?
            Suggest a dinner for two without meat.
            How do I make pizza dough?
            What can I use instead of butter?
            How do I keep apples fresh?
            Which wine goes with fish?
            How do you clean a microwave?
            """,
        "advice": """
            How can I sleep better?
            How do I make new friends?
            I am nervous about an exam. What should I do?
            How can I save money?
            Give me three tips for a job interview.
            How do I say no politely?
            I had a bad day. Cheer me up.
            How can I learn to cook?
            What should I wear to a wedding?
            How do I stop being late?
            my friend is sad, how can i help
            How do I get better at chess?
            How can I use my phone less?
            What is a good way to start the day?
            How do I apologize to a friend?
            Should I drink coffee in the evening?
            How do I find a hobby?
            """,
        "health": """
            How much water should I drink?
            What helps against a headache?
            Why is sleep important?
            How often should I brush my teeth?
            Which foods have a lot of vitamin C?
            Is it healthy to eat an apple a day?
            How can I relax?
            Why do we yawn?
            What is a balanced diet?
            How do I stretch my back?
            what is a normal body temperature?
            Is walking good for the heart?
            """,
        "travel": """
            What should I pack for a weekend trip?
            Suggest things to do in Paris.
            Is it better to travel by train or by airplane?
            How do I get over jet lag?
            What do I need for camping?
            Plan a day in a city with children.
            how early should i be at the airport
            What should I see in London?
            How do I pack a suitcase?
            What is the best season to visit Italy?
            How can I travel cheaply?
            """,
        "home": """
            How do I clean a couch?
            How often should I water a potted plant?
            How do I fix a flat bicycle tire?
            What do I do if my sink is blocked?
            How do I hang a picture on the wall?
            How can I make my room cozy?
            My laptop is slow. What can I do?
            How do I choose a mattress for my bed?
            How do I sharpen a knife?
            How can I get a stain out of a tie?
            My TV has no sound. Any ideas?
            how do i reset an alarm clock
            Which plants grow in the dark?
            How do I store winter clothes?
            How do I clean a toilet?
            """,
        "work": """
            Write a short email to ask for a day off.
            How do I start a letter to a customer?
            Write a thank-you note to a colleague.
            Give me a title for a talk about bees.
            How do I write a good summary?
            Write an invitation to a birthday party.
            Make this more polite: Send me the report.
            Fix the grammar: she go to school yesterday.
            Write an advertisement for a used bicycle.
            What should I write in a cover letter?
            Rewrite in one sentence: The dog was tired. The dog went to sleep.
            Write a polite reminder about an unpaid bill.
            Suggest a name for a coffee shop.
            Write a slogan for a bakery.
            Summarize what a manager does.
            """,
        "computers": """
            What is a computer program?
            What is the difference between RAM and a hard disk?
            How do I make a strong password?
            What does a for loop do?
            Write a Python function that adds two numbers.
            What is an operating system?
            What is the internet?
            How do I copy text with the keyboard?
            What is a computer mouse for?
            what is html
            What is open source software?
            How do I print the numbers from 1 to 10 in Python?
            What is a bug in software?
            How does a search engine work?
            What is artificial intelligence?
            What is a neural network?
            """,
        "everyday": """
            What day comes after Friday?
            How many months have 31 days?
            What do I need an umbrella for?
            What is a stop sign for?
            Why do people wear ties?
            What can I give my mother for her birthday?
            Who uses a tennis racket?
            What is a traffic light?
            When do people say "cheers"?
            What is a vase used for?
            How many wheels does a truck have?
            What do you use scissors for?
            Why do cars have seat belts?
            what is the difference between a cup and a glass
            What do people do at a picnic?
            How heavy is a bowling ball?
            What color do you get when you mix blue and yellow?
            What colors are in a rainbow?
            Which is faster, a bus or a bicycle?
            Can you eat an orange peel?
            Do I need a license to drive a motorcycle?
            """,
        "sports and games": """
            What are the rules of tennis?
            How many players are in a football team?
            How do I learn to ride a skateboard?
            What is a marathon?
            How do you play hide and seek?
            What is the difference between skiing and snowboarding?
            Who wins in rock paper scissors: rock or paper?
            Let us play a word game.
            Ask me a riddle.
            Give me a quiz question.
            how do i throw a frisbee
            What is surfing?
            How is baseball played?
            Suggest a game for a long car ride.
            How do I fly a kite?
            """,
        "jokes": """
            Tell me a joke.
            Do you know a joke about cats?
            Tell me a pun about bananas.
            Say something funny.
            Why did the chicken cross the road?
            Tell me a joke about computers.
            make me laugh
            Tell me a fun fact.
            """,
        "opinions": """
            What is better, tea or coffee?
            Do you think dogs are smarter than cats?
            What is your favorite color?
            What is the meaning of life?
            Is money important?
            What makes a good friend?
            Which book should I read?
            What is the best pizza topping?
            Is it wrong to lie?
            What is art?
            should children have a cell phone
            What music should I listen to while I work?
            Is a hot dog a sandwich?
            """,
        "lists": """
            List five fruits.
            Name three kinds of furniture.
            Give me ten names for a cat.
            List four things to bring to the beach.
            Name five musical instruments.
            What are the planets of our solar system?
            List three advantages of riding a bicycle.
            Name the four seasons.
            Give me a shopping list for a breakfast.
            Name three famous painters.
            list some means of transport
            Name five jobs that need a uniform.
            Write down three New Year's resolutions.
            What are the days of the week?
            """,
        "describing": """
            Describe a giraffe in words.
            Describe the taste of an orange.
            What does a zebra look like?
            Describe a typical kitchen.
            What does a fire engine look like?
            Describe a sunset in one sentence.
            How would you describe the color red to a blind person?
            What does a bear's footprint look like?
            Describe your perfect day.
            Explain what a bicycle is to someone who has never seen one.
            Describe a snowy street.
            what does a kiwi look like inside
            """,
    }.items()
}
