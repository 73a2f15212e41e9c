"""Published benchmarks with their authors' own rules, traps included, and what the traps do.

    questions = load_questions("pope", Path("artifacts/pope"))
    answers = ask_questions(questions, generate)          # generate(images, prompts) → texts
    print(grade_pope(questions, answers))

questions.py: what is asked. common.py: asking, files of answers, tables. yes_no.py: POPE, MME.
hallusion.py: HallusionBench. judged.py: LLaVA-Bench, MMHal-Bench. grades.py: all of them by name.
reward_judges.py: replies of judges on benchmarks of reward models. vqa.py: VQA accuracy.
polling.py: POPE's questions about one's own labelled images.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
