"""One episode, many episodes, and what they add up to.

agent     what acts: a policy bundle behind its encoder
baselines agents whose success is known beforehand: noop, random, replay, expert
episode   one rollout by the protocol: a pure function of its arguments
results   what is kept of an episode, and the append-only file it is kept in
plan      from the settings to an evaluation: which agent, and who it is
engine    many episodes, on any number of workers, resumable
publish   an evaluation and its conditions, into results/
metrics   success rates with Wilson intervals, latencies
video     H.264 recordings and film strips
"""
