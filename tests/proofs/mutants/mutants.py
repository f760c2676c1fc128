"""Plant bugs in a copy of the library, one at a time, and see that the tests find them.

``make mutants`` prints each and who caught it, and fails if one escapes.  A bug is a
piece of source that is there exactly once, and what stands in its place.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]

#: Seconds for the tests of one mutant; one that hangs them is caught as well.
PATIENCE = 900


@dataclass(frozen=True)
class Mutant:
    name: str
    module: str
    correct: str
    wrong: str
    tests: str

    @property
    def path(self) -> Path:
        return Path("sharedsession") / f"{self.module}.py"

    def plant(self, folder: Path) -> None:
        path = folder / self.path
        source = path.read_text(encoding="utf-8")
        if source.count(self.correct) != 1:
            raise SystemExit(f"{self.name}: the place to plant it is not there once")
        path.write_text(source.replace(self.correct, self.wrong), encoding="utf-8")


SCHEDULES = "tests/proofs/schedules/test_schedules.py"
MATRIX = "tests/ways_in/test_threads.py"
MENDED = "tests/guard/test_mended.py"
GUARD = "tests/guard/test_guard.py"
READS = "tests/guard/test_optimistic_reads.py"
WINDOWS = "tests/guard/test_windows.py"
TASKS = "tests/asyncio/test_async_session.py"
NOT_AWAITED = "tests/asyncio/test_not_awaited.py"
TASK_SCHEDULES = "tests/proofs/schedules/test_aio_schedules.py"

MUTANTS = [
    Mutant(
        "a task waits like a stranger in the section that it was started in",
        "guard/occupancy",
        "return turn.mode is EXCLUSIVE and turn.keeps.keys() <= owner.sections\n",
        "return False\n",
        f"{TASKS} -k gather_in_a_section",
    ),
    Mutant(
        "every task counts as started in the section",
        "guard/occupancy",
        "return turn.mode is EXCLUSIVE and turn.keeps.keys() <= owner.sections\n",
        "return turn.mode is EXCLUSIVE\n",
        TASKS,
    ),
    Mutant(
        "a flush in flight sees what is set beside it",
        "objects/hidden",
        "            orm.unflag(self.state)\n",
        "            pass\n",
        NOT_AWAITED,
    ),
    Mutant(
        "what is set beside a flush is not shown after it",
        "objects/hidden",
        "        orm.note_change(self.state, values, self.attribute, self.previous)\n",
        "",
        NOT_AWAITED,
    ),
    Mutant(
        "what was put off waits for the next one to come in",
        "asyncio/guard",
        "        if self.put_off and self.running is me:\n"
        "            self._do_put_off()\n",
        "",
        NOT_AWAITED,
    ),
    Mutant(
        "who does not wait sees into sections",
        "asyncio/guard",
        "        if strange and not restricted:\n"
        "            raise refusals.in_section(me, self.explain())\n",
        "",
        NOT_AWAITED,
    ),
    Mutant(
        "a relationship changes beside a flush that would lose it",
        "asyncio/guard",
        "            if not self._keeps_changes():\n"
        "                raise refusals.to_lose(me, self.explain())\n",
        "            pass\n",
        NOT_AWAITED,
    ),
    Mutant(
        "a task that ended keeps its section",
        "guard/task",
        "            guard.release_dead_owner(self)\n",
        "            pass\n",
        f"{TASKS} -k leaves_nothing",
    ),
    Mutant(
        "a reader that was just let in is put out by another one's end",
        "guard/occupancy",
        "        if not reader.keeps and not self._is_in_turn(reader.owner):\n",
        "        if not self._is_in_turn(reader.owner):\n",
        SCHEDULES,
    ),
    Mutant(
        "family is not told that its turn has come",
        "asyncio/lending",
        "        if self.queue and self._is_in_turn(me):  # tasks of",
        "        if False:  # tasks of",
        f"{TASK_SCHEDULES} -k two_tasks",
    ),
    Mutant(
        "a section that ended while it was lent is not over for who gives it back",
        "guard/occupancy",
        "        while self.running is None and self.window is None:\n",
        "        for _ in range(self.running is None and self.window is None):\n",
        f"{TASK_SCHEDULES} -k two_tasks",
    ),
    Mutant(
        "a task that ended keeps the section that it lent",
        "guard/occupancy",
        "() if self.turn is None else self.turn.with_lenders():\n"
        "                if turn.owner.party",
        "() if self.turn is None else (self.turn,):\n"
        "                if turn.owner.party",
        f"{TASK_SCHEDULES} -k two_tasks",
    ),
    Mutant(
        "a child whose read section ended loads beside other readers",
        "asyncio/lending",
        "        if was_reading:\n",
        "        if False:\n",
        f"{TASK_SCHEDULES} -k two_tasks",
    ),
    Mutant(
        "who put something off counts as family of who does it",
        "guard/task",
        "    token = _sections.set(owner.sections)\n",
        "    token = _sections.set(_sections.get())\n",
        f"{TASK_SCHEDULES} -k failed_once",
    ),
    Mutant(
        "a section begins before what its task put off",
        "asyncio/guard",
        "                self._do_put_off()  # impossible before, beside readers\n",
        "                pass\n",
        f"{TASK_SCHEDULES} {NOT_AWAITED} -k 'failed_once or comes_before'",
    ),
    Mutant(
        "who gives up waiting ends the stream that was waited for",
        "guard/guard",
        "        if turn is not None and turn.owner is me:\n" "            for number",
        "        if turn is not None:\n" "            for number",
        f"{TASK_SCHEDULES} {GUARD} -k 'failed_once or gives_up_waiting'",
    ),
    Mutant(
        "an operation goes in beside the exclusive one",
        "guard/occupancy",
        "        return self._welcomes(owner)\n",
        "        return True\n",
        f"{SCHEDULES} -k 'two_owners and critical'",
    ),
    Mutant(
        "the gate opens while somebody reads",
        "guard/monitor",
        "self.turn is None and not self.reading:",
        "self.turn is None:",
        f"{SCHEDULES} -k 'two_owners and read and rw'",
    ),
    Mutant(
        "who leaves by the gate does not look who queued meanwhile",
        "guard/gate",
        "                if self.hand_over_at and not self.abandoned_holds:\n",
        "                if True:\n",
        SCHEDULES,
    ),
    Mutant(
        "the monitor lets somebody in without closing the gate",
        "guard/monitor",
        "            return False  # an operation is inside by the gate\n",
        "            pass\n",
        SCHEDULES,
    ),
    Mutant(
        "who waits is overtaken for ever",
        "guard/waiting",
        "                if waiter.is_next():\n",
        "                if False:\n",
        "tests/guard/test_guard.py",
    ),
    Mutant(
        "who goes on coming in does not see that a turn is over",
        "guard/waiter",
        "return self.next_at is not None and self.guard.clock() >= self.next_at\n",
        "return False\n",
        "tests/guard/test_guard.py",
    ),
    Mutant(
        "who leaves does not look at the time",
        "guard/gate",
        "        return until is FOREVER or self.clock() < until\n",
        "        return bool(until)\n",
        "tests/guard/test_guard.py",
    ),
    Mutant(
        "writers enter ahead of readers that wait",
        "guard/monitor",
        "        return all(waiter.mode is EXCLUSIVE for waiter in self.queue)\n",
        "        return True\n",
        "tests/guard/test_guard.py",
    ),
    Mutant(
        "a window stays open when its owner changes something",
        "guard/gate",
        "        if self.window is me:\n            self.version = None\n",
        "        if self.window is me:\n",
        f"{SCHEDULES} -k 'several'",
    ),
    Mutant(
        "who waits to look is not told of a window",
        "guard/gate",
        "        if self.queue:\n            self._let_look()\n",
        "",
        WINDOWS,
    ),
    Mutant(
        "a window opens inside a section",
        "guard/gate",
        "        if kept or not self._has_windows or",
        "        if not self._has_windows or",
        WINDOWS,
    ),
    Mutant(
        "the first statement of a transaction keeps readers out",
        "session/transaction",
        "            guard.may_open = guard.window is me  # unless",
        "            guard.may_open = False  # unless",
        WINDOWS,
    ),
    Mutant(
        "a statement that writes keeps readers out",
        "operations/operation",
        "_WAITING = (LOAD, STATEMENT, COMMIT)\n",
        "_WAITING = (LOAD, COMMIT)\n",
        WINDOWS,
    ),
    Mutant(
        "a commit that flushed lets others look while it waits",
        "operations/operation",
        "    if access is not STATEMENT and access is not COMMIT:\n",
        "    if False:\n",
        WINDOWS,
    ),
    Mutant(
        "a window opens after a flush",
        "operations/operation",
        "        guard.may_open = False  # no window after a change\n",
        "        pass\n",
        WINDOWS,
    ),
    Mutant(
        "a window opens while rows become objects",
        "database/rows",
        "    guard.may_open = False  # close the window: "
        "half-loaded objects must not be read\n",
        "",
        WINDOWS,
    ),
    Mutant(
        "get() does not ask whether the version changed",
        "session/lookups",
        "    return found if session.guard.is_still(version) else None\n",
        "    return found\n",
        "tests/session/test_lookups.py",
    ),
    Mutant(
        "a reader overtakes who waits to be exclusive",
        "guard/monitor",
        "        if self.queue and not self._goes_first(me) and not self._may",
        "        if False and not self._may",
        f"{SCHEDULES} -k 'three_owners and rw'",
    ),
    Mutant(
        "whoever is let in is not woken",
        "guard/monitor",
        "            waiter.wake()\n            self.queue.remove(waiter)\n",
        "            self.queue.remove(waiter)\n",
        SCHEDULES,
    ),
    Mutant(
        "an operation that ends lets nobody in",
        "guard/occupancy",
        "                self._end_turns()\n"
        "            self._pass_on()\n"
        "        if",
        "                self._end_turns()\n" "        if",
        SCHEDULES,
    ),
    Mutant(
        "there is a version during an operation",
        "guard/gate",
        "                self.version = None\n                self.running = me\n",
        "                self.running = me\n",
        SCHEDULES,
    ),
    Mutant(
        "a look does not ask whether the version changed",
        "operations/operation",
        "            if guard.is_still(version):\n                return result\n",
        "            return result\n",
        SCHEDULES,
    ),
    Mutant(
        "a look counts beside the exclusive one",
        "guard/gate",
        "self.version is None and self.is_held_by(self.current_owner())\n",
        "self.version is None\n",
        SCHEDULES,
    ),
    Mutant(
        "a hold that was forgotten is looked for once",
        "guard/occupancy",
        "                if self.abandoned_holds:  # otherwise",
        "                if not self.abandoned_holds:\n"
        "                    return\n"
        "                if True:  # otherwise",
        f"{SCHEDULES} -k failed_once",
    ),
    Mutant(
        "a cycle of waits is not looked for",
        "guard/deadlocks",
        "    return found is not None and found == ",
        "    return found is None and found == ",
        f"{SCHEDULES} -k opposite",
    ),
    Mutant(
        "a read section may write",
        "guard/guard",
        "(reads or restricted) and access is not READ and access is not LOAD:\n",
        "False:\n",
        f"{SCHEDULES} tests/guard/test_guard.py",
    ),
    Mutant(
        "the collections of an object are not guarded",
        "objects/attributes",
        "            collections.guard_collection(collection)\n",
        "            pass\n",
        f"{MATRIX} {MENDED}",
    ),
    Mutant(
        "one method of collections only looks, as the table has it, and changes",
        "operations/tables",
        '        *("copy", "get", "items", "keys", "values"),\n',
        '        *("copy", "get", "items", "keys", "values", "reverse"),\n',
        MATRIX,
    ),
    Mutant(
        "rows are fetched after the operation",
        "database/rows",
        "    cursors.buffer_rows(result)\n",
        "    pass\n",
        "tests/database/test_rows.py",
    ),
    Mutant(
        "objects are made of rows after others came in",
        "database/rows",
        "        return _see_to_objects(guard, result, cursor_result)\n",
        "        return result\n",
        "tests/database/test_rows.py",
    ),
    Mutant(
        "a stream does not keep the guard",
        "database/rows",
        "        _stream(guard, result, cursor_result)\n",
        "        pass\n",
        "tests/database/test_rows.py",
    ),
    Mutant(
        "one method of Session is not guarded",
        "operations/tables",
        '    "dirty": READ,\n',
        '    "dirty": None,\n',
        MATRIX,
    ),
    Mutant(
        "a read does not ask whether the version changed",
        "objects/reading",
        "                if guard.version is version:\n"
        "                    return value\n",
        "                return value\n",
        READS,
    ),
    Mutant(
        "a read does not ask whether its section is still there",
        "objects/reading",
        "                    if guard.is_held_by(me):\n"
        "                        return value\n",
        "                    return value\n",
        READS,
    ),
    Mutant(
        "who goes on in a stream does not see that it ends",
        "guard/occupancy",
        "            held = self._is_in_turn(me)\n",
        "            held = True\n",
        f"{SCHEDULES} -k just_as_its_owner",
    ),
    Mutant(
        "a section begins in a stream and does not see that it ends",
        "guard/guard",
        "        with self._mutex:\n" "            turn = self.reading.get(me) if",
        "        if True:\n" "            turn = self.reading.get(me) if",
        f"{SCHEDULES} -k just_as_its_owner",
    ),
    Mutant(
        "the end of a stream ends the operation that runs",
        "guard/occupancy",
        "        while self.running is None and self.window is None:\n",
        "        while self.window is None:\n",
        f"{SCHEDULES} -k failed_once",
    ),
    Mutant(
        "a window that is left open stays so",
        "guard/gate",
        "            self.running = self.window = None\n            self.last",
        "            self.running = None\n            self.last",
        WINDOWS,
    ),
    Mutant(
        "a look in a stream does not see that another one ends it",
        "operations/operation",
        "            if guard.is_still(version):\n                return result\n",
        "            if guard.version is version:\n                return result\n",
        f"{SCHEDULES} -k failed_once",
    ),
    Mutant(
        "everybody counts as inside",
        "guard/gate",
        "turn is None or turn.owner is not me or turn.mode is not EXCLUSIVE:\n",
        "False:\n",
        f"{READS} {SCHEDULES}",
    ),
    Mutant(
        "setting an attribute is not guarded",
        "objects/setting",
        "        if guard is None:\n",
        "        if True:\n",
        MATRIX,
    ),
    Mutant(
        "a setting of the session is not guarded",
        "operations/tables",
        '        *("expire_on_commit", "join_transaction_mode", "twophase"),\n',
        '        *("join_transaction_mode", "twophase"),\n',
        MATRIX,
    ),
    Mutant(
        "nobody is told what a rollback threw away",
        "session/recovery",
        "            self._ledger.thrown_away(transaction, loss)\n",
        "            self._ledger.drop(transaction)\n",
        "tests/session/test_transactions.py tests/proofs/histories/test_histories.py",
    ),
    Mutant(
        "another thread's broken transaction stays broken",
        "session/recovery",
        "                self._end_broken(session, session._transaction)\n",
        "                break\n",
        "tests/session/test_transactions.py tests/proofs/histories/test_histories.py",
    ),
    Mutant(
        "a thread that ends in a section keeps the guard",
        "guard/ownership",
        "on_death.append(_release_everywhere)\n",
        "",
        "tests/guard/test_guard.py tests/guard/test_sequences.py",
    ),
    Mutant(
        "the child of a fork goes on with the parent's session",
        "guard/ownership",
        "        if self._process != os.getpid():\n",
        "        if False:\n",
        "tests/guard/test_sequences.py tests/proofs/faults/test_faults.py -k fork",
    ),
]


def try_mutant(mutant: Mutant) -> str | None:
    """Who caught it; ``None`` if nobody did."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("sharedsession", "tests", "README.rst", "setup.cfg", "setup.py"):
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, folder / part)
        mutant.plant(folder)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += shlex.split(mutant.tests)
        environ = {**os.environ, "PYTHONPATH": name, "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environ,
                timeout=PATIENCE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except subprocess.TimeoutExpired:
            return "the tests, which hang"
    if done.returncode not in (0, 1, -6, -11):
        raise SystemExit(f"{mutant.name}: pytest failed\n{done.stdout[-2000:]}")
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    if failed:
        return failed[0].split()[1]
    if "Timeout (" in done.stdout:
        return "a test, which hangs"
    return None if done.returncode == 0 else "a crash"


def main() -> int:
    chosen = [mutant for mutant in MUTANTS if _is_asked_for(mutant)]
    caught = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutant, by in zip(chosen, pool.map(try_mutant, chosen)):
            caught += by is not None
            verdict = f"caught by {by}" if by else "ESCAPED"
            print(f"{mutant.module}: {mutant.name}: {verdict}", flush=True)
    print(f"{len(chosen)} planted, {caught} caught")
    return 0 if caught == len(chosen) else 1


def _is_asked_for(mutant: Mutant) -> bool:
    return not sys.argv[1:] or any(word in mutant.name for word in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
