#!/usr/bin/env bash
# Shot2Story-MAGQA from video to table: bash scripts/inference/magqa.sh --help
NAME=magqa
ABOUT="Shot2Story-MAGQA-39k test (Wang et al. 2024): the model answers when informative + relevance score passes 0.5; a judge model grades each
answer. 2 frames a second, at most 400. Judge: JUDGE=endpoint|local|batch (default endpoint), JUDGE_MODEL (default gpt-4o), key and address
OPENAI_API_KEY and OPENAI_BASE_URL in .env; grades are kept, so an interrupted judge goes on where it stopped."
SCORE=(--frame_fps 2 --max_num_frames 400 --stream_end_prob_threshold 0.5 --score_heads informative_score,relevance_score --remove_assistant_turns)
evaluate() {
    "$PYTHON" -m aha.eval.magqa ${DATA_ROOT:+--annotations "$DATA_ROOT"} --judge "${JUDGE:-endpoint}" --judge_model "${JUDGE_MODEL:-gpt-4o}" \
        --judge_cache "$OUT/judgments.jsonl" --batch_dir "$OUT/judge_batch" --scored "$OUT/scored.jsonl" "$@"
}
source "$(dirname "${BASH_SOURCE[0]}")/run.sh"
