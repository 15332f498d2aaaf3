r"""Adversarial cases of the verifier "math": what a grader must accept, what it must not, and why it said no.

A row is (gold, prediction, expected): True, False, or the Reason that must be given.
"""

from __future__ import annotations

import pytest

from strop.record import Reason, Task
from strop.rewards.math import grade, verify_number

MANY, EMPTY, NONE = Reason.TOO_MANY_ANSWERS, Reason.EMPTY, Reason.NO_ANSWER
NO_GOLD, UNREADABLE = Reason.UNPARSEABLE_GOLD, Reason.UNPARSEABLE_ANSWER

CONSTANTS = [  # i, j and e are numbers, glued, spaced or upright, and never units
    *(("3", rf"\boxed{{3{c}}}", False) for c in ("i", " i", "e", " e", "j", " j")),
    *(
        ("3", rf"\boxed{{3{c}}}", False)
        for c in (r"\text{i}", r"\text{ i}", r"\,\mathrm{i}", r"\mathrm{e}", r"\text{j}")
    ),
    ("3i", r"\boxed{3\mathrm{i}}", True),
    (r"3\mathrm{i}", r"\boxed{3i}", True),
    ("3i", r"\boxed{3}", False),
    ("3i", r"\boxed{\sqrt{-9} = 3i}", True),
    ("2e", r"\boxed{2\mathrm{e}}", True),
    ("12", r"\boxed{12 \text{ m}}", True),
    ("12", r"\boxed{12 k}", True),
]

CHAINS = [  # a side with a value of its own says something else than a gold answer that has letters
    ("2x+3", r"\boxed{5 = 2x + 3}", False),
    ("2x+3", r"\boxed{A = 5 = 2x + 3}", False),
    ("2x+3", r"\boxed{y = 2x + 3}", True),
    ("2x+3", r"\boxed{f(x) = x + x + 3 = 2x + 3}", True),
    ("2x+3", r"\boxed{x^2 = 2x + 3}", True),  # a right answer where x^2 was to be expressed
    ("p^2", r"\boxed{P(X = 2) = p^2}", True),  # an equals sign in brackets parts nothing
    ("0.25", r"\boxed{P(X = 2) = \frac{1}{4}}", True),
    ("8", r"\boxed{\sum_{k=1}^{4} 2 = 8}", True),
    ("4a", r"\boxed{\sum_{k=1}^{4} a = 4a}", True),
]

FINDING = [
    # the last box
    ("5", r"\boxed{5}", True),
    ("5", r"First \boxed{3}. Wait, that is wrong. So \boxed{5}.", True),
    ("3", r"First \boxed{3}. Wait, that is wrong. So \boxed{5}.", False),
    ("5", r"The answer is 3, \boxed{5}", True),
    (r"\frac{1}{2}", r"\boxed{\frac{1}{2}}", True),
    (r"\frac{1}{\sqrt{2}}", r"so $\boxed{\frac{1}{\sqrt{2}}}$.", True),
    ("5", r"\boxed{\boxed{5}}", True),
    ("5", r"\boxed{ 5 }", True),
    ("5", r"\boxed 5", True),
    ("5", r"\fbox{5}", True),
    ("5", r"\boxed{5", UNREADABLE),
    ("5", r"\boxed{5} or rather \boxed{6", UNREADABLE),
    ("5", r"\boxed{}", NONE),
    ("5", r"\boxed{\text{The answer is } 5}", True),
    ("5", r"<think>\boxed{4}</think> The result is \boxed{5}", True),
    ("4", r"<think>\boxed{4}</think> The result is 5.", False),
    ("4", r"<think>so \boxed{4}</think>", True),
    # other marks
    ("18", "16 - 3 - 4 = 9 eggs, 9 * 2 = 18 dollars.\n#### 18", True),
    ("18", "#### 18 dollars", True),
    ("1800", "#### $1,800", True),
    ("5", "<answer>5</answer>", True),
    ("5", "<answer>4</answer> <answer>5</answer>", True),
    ("5", r"<answer>\boxed{5}</answer>", True),
    ("42", "The answer is 42.", True),
    ("42", "The answer is: 42. I hope it is correct.", True),
    ("42", "**Answer:** 42", True),
    ("42", "**Final Answer**: $42$", True),
    ("42", "Final answer:\n42", True),
    ("42", "Therefore, the final answer is $\\boxed{42}$. I hope it is correct.", True),
    ("42", "The answer is not 42 but 43.", False),
    ("3.5", "The answer is 3.5 because 7/2 = 3.5.", True),
    ("12", "So the answer is 12 cm, which is short.", True),
    # bare answers and tails
    ("42", "42", True),
    ("42", "42.", True),
    ("42", "**42**", True),
    ("42", "$42$", True),
    ("5", "x = 5", True),
    ("5", "It is 5 cm.", True),
    ("18", "She eats three, bakes with four, and so she makes 9 * 2 = $18 every day at the market.", True),
    ("9", "She eats three, bakes with four, and so she makes 9 * 2 = $18 every day at the market.", False),
    (r"\frac{1}{2}", r"After some algebra we conclude that the value of x is $\frac{1}{2}$.", True),
    ("2", r"After some algebra we conclude that the value of x is $\frac{1}{2}$.", False),
    ("5", "I do not know the answer to this question, sorry about that.", NONE),
    ("5", "", EMPTY),
    ("5", "  \n\t ", EMPTY),
]

LISTING = [
    ("3", r"\boxed{1, 2, 3}", MANY),
    ("3", r"\boxed{1} or \boxed{2} or \boxed{3}", MANY),
    ("3", r"\boxed{1}, \boxed{2}, \boxed{3}", MANY),
    ("2", r"\boxed{1} \boxed{2} \boxed{3}", False),
    ("3", "1 or 2 or 3", MANY),
    ("3", "The answer is either 2 or 3.", MANY),
    ("3", r"\boxed{2 \text{ or } 3}", MANY),
    ("3", r"\boxed{\{1,2,3\}}", MANY),
    ("3", r"\boxed{1; 2; 3}", MANY),
    ("3", r"\boxed{1 \\ 2 \\ 3}", MANY),
    ("3", r"\boxed{1 2 3}", MANY),
    ("34", r"\boxed{3 4}", MANY),
    ("12", r"\boxed{3 4}", MANY),
    ("3", "1 2 3", MANY),
    ("3", "1\n2\n3", MANY),
    ("3", r"\boxed{1 = 2 = 3}", False),
    ("3", r"\boxed{\pm 3}", MANY),
    ("3", r"\boxed{x = 1 \text{ or } x = 3}", MANY),
    ("3", r"\boxed{x \in \{1, 3\}}", MANY),
    ("3", ", ".join(map(str, range(100))), False),
    ("7", " ".join(rf"\boxed{{{i}}}" for i in range(20)), False),
    ("B", "A, B, C, D", MANY),
    ("3", r"\boxed{3, 3}", True),
    ("0.5", r"\boxed{0.5, \frac{1}{2}}", True),
    ("1,2", r"\boxed{1, 2, 3}", MANY),
    ("5", r"\boxed{5 (or 6)}", False),
    ("5", r"\boxed{5...6}", False),
    ("5", r"\boxed{5 \cup 6}", False),
    ("5", r"\boxed{5\,6}", MANY),
    ("5", r"\boxed{\text{5 or 6}}", MANY),
    ("5", "x=5, y=6", MANY),
    ("4", r"\boxed{x=4}\text{ or }\boxed{x=-4}", MANY),
    ("A", "A. B. C.", False),
    ("A", "A) or B)", MANY),
    ("5", r"\boxed{5 \text{ or anything}}", MANY),
    ("5", r"\boxed{5^\circ \text{ or anything}}", MANY),
    ("5", r"\boxed{5 \text{ cm or } 6 \text{ cm}}", MANY),
    ("5", r"\boxed{5 \text{ cm or more}}", False),
]

NUMBERS = [
    ("0.5", r"\frac{1}{2}", True),
    ("0.5", r"\boxed{\frac12}", True),
    ("0.5", r"\dfrac{1}{2}", True),
    ("0.5", r"\tfrac 1 2", True),
    ("0.5", "1/2", True),
    ("0.5", "½", True),
    ("0.5", ".5", True),
    ("0.5", "0.50", True),
    ("5", "5.0", True),
    ("5", "05", True),
    ("5", "+5", True),
    ("-5", "−5", True),
    ("-5", "5", False),
    ("5", "-5", False),
    (r"-\frac{3}{8}", r"\frac{-3}{8}", True),
    (r"-\frac{3}{8}", "-0.375", True),
    (r"\frac{14}{3}", r"4\frac{2}{3}", True),
    (r"1\frac{4}{5}", r"\frac{9}{5}", True),
    (r"1\frac{4}{5}", "1 4/5", True),
    (r"1\frac{4}{5}", r"\frac{4}{5}", False),
    ("1234.5", "$1,234.50", True),
    ("1234.5", r"\$1{,}234.50", True),
    ("10080", r"10,\!080", True),
    ("10,080", "10080", True),
    ("1234567", "1,234,567", True),
    ("1000", "1 000", True),
    ("4.5e33", r"4.5 \times 10^{33}", True),
    ("4.5e33", "4.5*10^33", True),
    ("4.5e33", "4.6e33", False),
    ("5.3e-9", "7.4e-12", False),
    ("1e-8", "2e-8", False),
    ("100000000", "10^8", True),
    ("1000000", "1000001", False),
    (r"\frac{1}{3}", "0.333333", True),
    (r"\frac{1}{3}", "0.33", False),
    (r"\frac{1}{3}", "0.333334", False),
    ("0.33", r"\frac{1}{3}", False),
    ("0.3", "0.30000000000000004", True),
    ("3", "3.0000001", False),
    ("5", "0/0", False),
    ("5", "1/0", False),
    ("5", "nan", False),
    ("5", r"\infty", False),
    (r"\infty", r"\infty", True),
    (r"\infty", r"-\infty", False),
    ("5", "5" * 300, False),
    (r"\frac{1}{3}", r"0.\overline{3}", True),
    (r"\frac{1}{6}", r"0.1\overline{6}", True),
    ("0", "1e-30", False),
    ("0", "-0", True),
    ("1000000007", "1000000007.0", True),
    ("2:3", "2:3", True),
    ("3:30", "3:30", True),
    ("3:30", "3:40", False),
    ("5", "about 5", True),
    ("5", r"\boxed{\text{about } 5}", True),
    ("5", "5 out of 10", False),
]

UNITS = [
    ("12", "12 cm", True),
    ("12", r"12\text{ cm}", True),
    ("12", r"12\,\mathrm{m}", True),
    ("12", "12 m", True),
    ("12", "12cm", True),
    ("12 cm", "12", True),
    ("12 cm", "12 centimeters", True),
    ("12 cm", "12 m", False),
    ("12 cm", r"12 \text{ cm}^2", False),
    (r"15\mbox{ cm}^2", r"15 \text{ square centimeters}", True),
    (r"864 \mbox{ inches}^2", "864", True),
    ("12", "12 apples", True),
    ("7 eggs", "7 eggs per day", True),
    (r"90^\circ", "90", True),
    ("90", "90°", True),
    ("90", "90 degrees", True),
    (r"\frac{270}7\text{ degrees}", r"\frac{270}{7}^\circ", True),
    (r"\$18.90", "18.9", True),
    ("18.90", r"\$18.90", True),
    ("5 dollars", "5 cents", False),
    (r"16\sqrt{3}", r"16\sqrt{3}\text{ cm}", True),
    ("2k", "2", False),
    ("2", "2k", False),
    (r"\frac{37}{4} m", r"\frac{37}{4}", False),
]

PERCENT = [
    (r"50\%", "50%", True),
    (r"50\%", r"50\%", True),
    (r"50\%", "50", True),
    (r"50\%", "0.5", True),
    (r"50\%", r"\frac{1}{2}", True),
    ("50", "50%", True),
    ("0.5", "50%", True),
    ("0.5", "0.5%", False),
    ("0.5", "50", False),
    ("50", "0.5", False),
    ("50%", "5%", False),
    ("62.5%", "62.5 percent", True),
    ("1", "1%", False),
]

STRUCTURES = [
    ("1,-2", "-2, 1", True),
    ("3, 5, 7", r"\boxed{7, 5, 3}", True),
    ("3, 5, 7", r"\boxed{3}, \boxed{5}, and \boxed{7}", True),
    ("3, 5, 7", "3, 5", False),
    ("3, 5, 7", "3, 5, 7, 9", MANY),
    ("1, 2", "1 and 2", True),
    ("1, 2", r"\{1, 2\}", True),
    ("1, 2", "x = 1 or x = 2", True),
    (r"\{1, 2\}", r"\{2, 1\}", True),
    (r"\{1, 2\}", r"\{1, 3\}", False),
    (r"\{3\}", "3", True),
    ("3", r"\{3\}", True),
    ("(1,2)", "(1, 2)", True),
    ("(1,2)", "(2,1)", False),
    ("(1,2)", "1, 2", True),
    ("(1,2)", "2, 1", False),
    ("(1,2)", "[1,2]", False),
    ("(1,2)", "(1,2]", False),
    ("(x,y) = (1,2)", "(1,2)", True),
    (r"(2,\infty)", r"x > 2", True),
    (r"(2,\infty)", r"x \ge 2", False),
    (r"x \in [-2,7]", "[-2,7]", True),
    (r"x \in [-2,7]", r"-2 \le x \le 7", True),
    (r"x \in [-2,7]", "(-2,7)", False),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty)\cup(-\infty,2)", True),
    (r"(-\infty, 2) \cup (3, \infty)", r"(-\infty, 2] \cup (3, \infty)", False),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)", True),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/3)", False),
    ("(-1,6)", r"\boxed{\left(-1,\ 6\right)}", True),
    ("(1,1006),(3,331)", "(3,331), (1,1006)", True),
    ("(1,1006),(3,331)", "(331,3), (1,1006)", False),
    ("100, 200", "100,200", True),
    ("100200", "100,200", True),
    ("100200", "100, 200", MANY),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}", True),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}", False),
    (r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1-\sqrt5, 1+\sqrt5\}", True),
    (r"\begin{pmatrix} -1/3 \\ 2/3 \end{pmatrix}", r"\begin{bmatrix} -\frac13 \\ \frac23 \end{bmatrix}", True),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", "(1, 2)", True),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}", False),
    (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 & 3 & 4 \end{pmatrix}", False),
    ("x=1, y=2", "x=2, y=1", False),
    ("x=1, y=2", "y=2, x=1", True),
    ("x<3", r"(-\infty,3)", True),
    ("3 < x", "x > 3", True),
    ("[0,2]", r"[0,1]\cup[1,2]", True),
    ("1,3,5", "[1,3,5]", True),
    ("1,3,5", "[5,3,1]", False),
    ("(5,6)", "x=5, y=6", True),
    ("x=1, y=2", "(1,2)", True),
]

EXPRESSIONS = [
    ("5", "x=5", True),
    ("x=5", "5", True),
    ("x=5", "x = 5", True),
    ("x=5", "y = 5", False),
    ("x=5", "5 = x", True),
    ("5", "2 + 3 = 5", True),
    ("5", "2 + 4 = 5", False),
    (r"9\pi", r"A = \pi r^2 = 9\pi", True),
    (r"3\sqrt{13}", r"\sqrt{117}", True),
    (r"3\sqrt{13}", "10.816654", True),
    (r"3\sqrt{13}", "10.8", False),
    (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}", True),
    (r"11\sqrt2", r"11 \sqrt{2}", True),
    (r"288 \pi", r"288\pi", True),
    ("288π", r"288\pi", True),
    (r"\sqrt{51}", "√51", True),
    ("2k+2", "2(k+1)", True),
    ("2k+2", "2k+3", False),
    ("(a+5)(b+2)", "ab + 2a + 5b + 10", True),
    ("(a+5)(b+2)", "(b+2)(a+5)", True),
    ("(a+5)(b+2)", "(a+2)(b+5)", False),
    ("p - q", "-q + p", True),
    ("6 - 5i", "-5i + 6", True),
    ("6 - 5i", "6 + 5i", False),
    (r"\cot x", r"\frac{\cos x}{\sin x}", True),
    ("2^{10}", "1024", True),
    ("y = 2x + 3", "2x + 3", True),
    ("y = 2x + 3", "y - 2x = 3", True),
    ("5x - 7y + 11z + 4 = 0", "-10x + 14y - 22z - 8 = 0", True),
    ("5x - 7y + 11z + 4 = 0", "5x - 7y + 11z = 4", False),
    ("f(x) = x+1", "x + 1", True),
    (r"\frac{1}{3}", r"\frac{1}{3} \approx 0.333", True),
    ("3", r"1 \approx 3", False),
    ("5!", "120", True),
    ("np.arcsin(10/13)", r"\arcsin\left(\frac{10}{13}\right)", True),
    ("10^{-20}\\sqrt{2}", "10^{-20}\\sqrt{3}", False),
    ("52_8", "52_{8}", True),
    ("52_8", "52", True),
    ("52_8", "52_9", False),
    ("52_8", "42", False),
    (r"\log_2 8", "3", True),
    (r"e^{i\pi}", "-1", True),
    ("i", r"\sqrt{-1}", True),
    (r"\sqrt{x^2}", "x", False),
    ("|x|", "x", False),
    (r"12\pi", "37.699112", True),
    (r"12\pi", "37.7", False),
    (r"\binom{10}{3}", "120", True),
    (r"\sin 2x", r"2\sin x\cos x", True),
    ("y^2=4x", "4x=y^2", True),
    ("5", r"\boxed{5 \ne 6}", False),
    ("5", "x<=5", False),
    ("5", "==5", False),
    (r"I(0) e^{-\frac{t}{RC}}", r"I(0)e^{-t/(RC)}", True),
    (r"\emptyset", r"\varnothing", True),
    ("2R + r", "3r", False),  # capitals are letters of their own
    ("R^2", "r^2", False),
    ("f'(x)", "f(x)", False),
    ("2f'(x)", "f'(x) + f'(x)", True),
    ("a + c", "2b", False),  # true where a, b, c are in even steps
    ("B_{n-1} = M_n", "B_{n-2} = M_n", False),
    ("-A^{-1}(DA - AD)", "-A^{-2}(DA - AD)", False),  # both zero where letters commute
    (r"2 \binom{4}{2}", "12", True),
    (r"2 \binom{4}{2}", "8", False),  # as a mixed number would be read
    (r"\lfloor \frac{n-1}{2} \rfloor", r"\lfloor \frac{n-2}{2} \rfloor", False),
    (r"\left\lfloor \frac{n-1}{2} \right\rfloor", r"\lfloor (n-1)/2 \rfloor", True),
    # alike in their first 30 digits
    (r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}", r"\frac{2^{2005}+2}{3 \cdot 2^{2006}}", False),
    (r"\frac{2^{2005}+1}{3 \cdot 2^{2006}}", r"\frac{2^{2005}+1}{6 \cdot 2^{2005}}", True),
    (r"4^{2017} - 2 \cdot 3^{2017}", r"4^{2017} - 3 \cdot 3^{2017}", False),
    (r"\sqrt{2^{2010}+2} - 2^{1005}", r"\sqrt{2^{2010}+3} - 2^{1005}", False),
    (r"\sqrt{\frac{2^{2009}-1}{3}}", r"\sqrt{\frac{2^{2009}-2}{3}}", False),
    # factorials and powers
    ("(n+1)!", "n+1", False),
    ("(n+1)!", "(n+1) n!", True),
    (r"2 \cdot 5!", "240", True),
    ("(5!)^3", "1728000", True),
    (r"7^{7} \cdot 11^{7} \cdot 13^{7}", "1001^7", True),
    # what cannot be computed can be compared as it is written
    ("2018!", "2018!", True),
    ("2018!", "2019!", False),
    ("10^{100!}", "10^{101!}", False),
    (r"\aleph_0", r"\aleph_0", True),
    (r"\aleph_0", r"\aleph_1", False),
    ("x^*", "x^*", True),
    ("6:00", "6:00", True),
    ("6:00", "6:01", False),
    ("(0,0)；(1,2)", "(0,0), (1,2)", True),
]

ECHOES = [  # problem, gold, prediction, right?
    ("There are 42 legs and 17 heads. How many sheep?", "17", "There are 42 legs and 17 heads.", False),
    ("There are 42 legs and 17 heads. How many sheep?", "17", "There are 42 legs and 17 heads. It must be 17.", True),
    ("There are 42 legs and 17 heads. How many sheep?", "17", r"There are 42 legs and 17 heads. \boxed{17}", True),
    (
        "There are 42 legs and 17 heads. How many sheep?",
        "17",
        "There are 42 legs and 18 heads, so I say it must be 17",
        True,
    ),
    ("Compute 27 + 48.", "75", "75", True),
    ("", "5", "So I think that after all of this it is 5.", True),
]

TEXTS = [
    (r"\text{Evelyn}", "Evelyn", True),
    (r"\text{Evelyn}", r"\boxed{\text{Evelyn}}", True),
    (r"\text{Monday}", "The answer is Monday.", True),
    (r"\text{Monday}", "The answer is Tuesday.", False),
    (r"\text{east}", r"\boxed{\text{seat}}", False),
    ("even", r"\boxed{\text{Even}}", True),
    ("even", r"\boxed{\text{odd}}", False),
    ("Yes", "yes.", True),
    ("True", r"\boxed{False}", False),
    (r"\text{(C)}", "C", True),
    (r"\text{(C)}", r"\boxed{\text{(C)}}", True),
    (r"\text{(C)}", "(C)", True),
    (r"\text{(C)}", "The answer is (C).", True),
    (r"\text{(C)}", "The correct answer is C) 12", True),
    (r"\text{(C)}", r"\boxed{\textbf{(C)}\ 12}", True),
    (r"\text{(C)}", "(B)", False),
    (r"\text{(C)}", "C and D", False),
    ("B", "b", False),
    ("MR=SRMC", "MR = SRMC", True),
    (r"\text{Navin}", "Evelyn, Navin, Briana", False),
    (r"\text{no}", r"\boxed{\text{on}}", False),
    (r"\text{no}", "No", True),
    ("A", "A. A triangle", True),
]

GOLDS = [
    ("", "5", NO_GOLD),
    ("  ", "", NO_GOLD),
    (r"\frac{1}{", r"\frac{1}{", NO_GOLD),
    (r"\frac{", r"\boxed{\frac{}", NO_GOLD),
    ("???", "???", NO_GOLD),
    ("$", "$", NO_GOLD),
    ("{5", "5", NO_GOLD),
    ("1/0", "1/0", NO_GOLD),
    ("1 +", "1 +", NO_GOLD),
    ("16 - 3 = 13\n#### 13", "13", True),
    (r"So we get $\boxed{13}$.", "13", True),
    ("Answer: NYYYYY", "NYYYYY", True),
    (r"5\text{:}30\text{ p.m.}", r"\boxed{5\text{:}30\text{ p.m.}}", True),
    ("+", "+", NO_GOLD),
]

HOSTILE = [
    ("5", r"\boxed{9^{9^{9^9}}}", False),
    ("5", r"\boxed{1e1000000000}", False),
    ("5", r"\boxed{2^{99999999}}", False),
    ("5", r"\boxed{99999999!}", False),
    ("5", r"\boxed{((5!)!)!}", False),
    ("5", r"\boxed{" * 20000, UNREADABLE),
    ("5", "{" * 100_000 + "5", False),
    ("5", r"\boxed{" + "{" * 5000 + "5" + "}" * 5000 + "}", False),
    ("5", r"\boxed{" + "(" * 900 + "5" + ")" * 900 + "}", False),
    ("5", r"\boxed{" + r"\{" * 300 + "5" + r"\}" * 300 + "}", False),
    ("5", r"\boxed{" + r"\sqrt{" * 200 + "5" + "}" * 201, False),
    ("5", "5" * 100_000, False),
    ("5", "word " * 20_000, NONE),
    ("5", "answer " * 20_000, NONE),
    ("5", "\x00\ud800 5", False),
    ("5", r"\boxed{__import__('os').system('true')}", False),
    ("5", r"\boxed{\input{/etc/passwd}}", False),
    ("5", r"\boxed{5\!}", True),
]

TABLES = {
    "constants": CONSTANTS, "chains": CHAINS, "finding": FINDING, "listing": LISTING, "numbers": NUMBERS, "units": UNITS, "percent": PERCENT,
    "structures": STRUCTURES, "expressions": EXPRESSIONS, "texts": TEXTS, "golds": GOLDS, "hostile": HOSTILE,
}  # fmt: skip


@pytest.mark.parametrize(
    ("gold", "prediction", "expected"),
    [pytest.param(*row, id=f"{name}-{i}") for name, rows in TABLES.items() for i, row in enumerate(rows)],
)
def test_case(gold: str, prediction: str, expected: bool | Reason) -> None:
    verdict = grade(gold, prediction)
    assert verdict.correct == (expected is True), verdict
    assert verdict.correct == (verdict.reason is Reason.CORRECT)
    if isinstance(expected, Reason):
        assert verdict.reason is expected


@pytest.mark.parametrize(("problem", "gold", "prediction", "right"), ECHOES)
def test_repeating_the_problem_earns_nothing(problem: str, gold: str, prediction: str, right: bool) -> None:
    assert grade(gold, prediction, problem).correct is right
    assert grade(gold, prediction).correct, "without the problem nobody knows better"


SUM = Task.make(source="s", prompt="Compute 27 + 48.", answer="75", verifier="number")


@pytest.mark.parametrize(
    "text",
    [r"\boxed{27 + 48}", r"\boxed{x = 27 + 48}", r"\boxed{27 + 48 = x}", r"27\,+\,48", r"27~+~48", r"27 $+$ 48",
     "The answer is x = 27 + 48", r"\boxed{27{+}48}", r"\boxed{\text{27 + 48}}"],
)  # fmt: skip
def test_a_sum_that_is_not_worked_out_earns_nothing(text: str) -> None:
    assert not verify_number(SUM, text).correct


@pytest.mark.parametrize(
    "text",
    [r"\boxed{75}", r"\boxed{27 + 48 = 75}", r"\boxed{x = 75}", r"\boxed{75 \text{ apples}}", r"\boxed{\$75}", r"\boxed{75 m}",
     r"\boxed{\text{75}}", r"\boxed{75^\circ}", r"\boxed{75\%}", "The answer is 75 miles per hour", "#### 75"],
)  # fmt: skip
def test_a_sum_that_is_worked_out_is_right_with_a_name_or_a_unit(text: str) -> None:
    assert verify_number(SUM, text).correct
