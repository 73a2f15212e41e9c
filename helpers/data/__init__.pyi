"""The public names of this room, and the module of each; `lazy_loader` reads this file."""

from .archives import (
    is_system_file as is_system_file,
    unpack_archive as unpack_archive,
)
from .blind import (
    BlindRules as BlindRules,
    BlindTable as BlindTable,
    best_rule as best_rule,
    blind_record_values as blind_record_values,
    blind_rules as blind_rules,
    blind_values as blind_values,
    blind_warnings as blind_warnings,
    name_best_rule as name_best_rule,
    render_blind_table as render_blind_table,
    too_good_rules as too_good_rules,
    true_image_detail_shares as true_image_detail_shares,
)
from .columns import (
    ROLES as ROLES,
    SHAPES as SHAPES,
    Column as Column,
    Header as Header,
    Layout as Layout,
    as_questions as as_questions,
    find_header as find_header,
    header_fit as header_fit,
    match_columns as match_columns,
    plain_title as plain_title,
)
from .convert_files import (
    convert_file as convert_file,
    count_changed as count_changed,
    detect_format as detect_format,
    is_array as is_array,
    raw_rows as raw_rows,
    scan_file as scan_file,
    write_file as write_file,
)
from .convert_rows import (
    EXTRA_COLUMN as EXTRA_COLUMN,
    from_row as from_row,
    read_mention as read_mention,
    to_rows as to_rows,
)
from .counting import (
    SINGULAR as SINGULAR,
    Counts as Counts,
    classes_of as classes_of,
    count_answer as count_answer,
    count_question as count_question,
    edited_counts as edited_counts,
    is_exact as is_exact,
    is_well_formed as is_well_formed,
    like_classes as like_classes,
    parse_counts as parse_counts,
    spelled_class as spelled_class,
    unreadable_classes as unreadable_classes,
)
from .data_doctor import (
    TokenLengths as TokenLengths,
    check_file as check_file,
    find_photos as find_photos,
)
from .door import (
    KNOWN as KNOWN,
    OpenedData as OpenedData,
    OpenedPart as OpenedPart,
    find_source as find_source,
    open_data as open_data,
)
from .findings import (
    FINDING_KINDS as FINDING_KINDS,
    SAME_PHOTO as SAME_PHOTO,
    DataReport as DataReport,
    Finding as Finding,
    FindingKind as FindingKind,
    Place as Place,
    Problems as Problems,
    salvage as salvage,
)
from .formats import (
    FORMATS as FORMATS,
    DatasetRow as DatasetRow,
    Format as Format,
)
from .hub import (
    HUB_SETS as HUB_SETS,
    HubSet as HubSet,
    fetch_hub_set as fetch_hub_set,
    load_rows as load_rows,
    store_images as store_images,
)
from .image_copies import (
    copy_images as copy_images,
    reduce_image as reduce_image,
    same_place as same_place,
)
from .image_names import (
    ImageFinder as ImageFinder,
    list_folder_images as list_folder_images,
)
from .judgement import (
    Judgement as Judgement,
    Ranking as Ranking,
    StrictModel as StrictModel,
    VoteVerdict as VoteVerdict,
    consensus as consensus,
    explain_validation_error as explain_validation_error,
    rank_by_score as rank_by_score,
    tier_of_each as tier_of_each,
)
from .labels.counted import (
    IMAGE_SUFFIXES as IMAGE_SUFFIXES,
    CountedImage as CountedImage,
    LabelledImage as LabelledImage,
    Labels as Labels,
    join_names as join_names,
    photo_group as photo_group,
)
from .labels.folder import (
    LabelFolder as LabelFolder,
    classes_counted as classes_counted,
    open_labels as open_labels,
    read_counts as read_counts,
)
from .leftovers import (
    Leftovers as Leftovers,
)
from .own_rows import (
    CellRow as CellRow,
    ReadRows as ReadRows,
    RowReader as RowReader,
    read_number as read_number,
    reference_texts as reference_texts,
)
from .pairs import (
    IMAGE_NEGATIVES as IMAGE_NEGATIVES,
    NEGATIVES as NEGATIVES,
    add_image_negatives as add_image_negatives,
    build_records as build_records,
    caption_question as caption_question,
    counted_items as counted_items,
    counted_records as counted_records,
    counting_tasks as counting_tasks,
    highest_counts as highest_counts,
    make_one_sided as make_one_sided,
    one_class_answers as one_class_answers,
    one_class_question as one_class_question,
    presence_question as presence_question,
    question_for as question_for,
    record_of_item as record_of_item,
    spoil_image as spoil_image,
    swap_rankings as swap_rankings,
    true_and_wrong_answers as true_and_wrong_answers,
)
from .preferences import (
    RawRow as RawRow,
    RecordLine as RecordLine,
    file_of as file_of,
    json_schema as json_schema,
    open_records as open_records,
    raw_lines as raw_lines,
    read_records as read_records,
    scan_line as scan_line,
    scan_records as scan_records,
    write_records as write_records,
)
from .prepare import (
    Entry as Entry,
    describe as describe,
    prepare_data as prepare_data,
)
from .prepared import (
    SHIPPED_ABOUT as SHIPPED_ABOUT,
    TRAFFIC as TRAFFIC,
    PreparedData as PreparedData,
    read_prepared as read_prepared,
    read_tasks as read_tasks,
    write_tasks as write_tasks,
)
from .question_files import (
    FileReader as FileReader,
    is_preference as is_preference,
    read_question_list as read_question_list,
)
from .record import (
    Answer as Answer,
    Message as Message,
    Origin as Origin,
    Pair as Pair,
    PreferenceRecord as PreferenceRecord,
    conversation_text as conversation_text,
    is_first_shown_second as is_first_shown_second,
    name_images as name_images,
    record_key as record_key,
    resolve_images as resolve_images,
    seen_text as seen_text,
)
from .scenes import (
    CELL as CELL,
    CLASSES as CLASSES,
    COLORS as COLORS,
    GRID as GRID,
    IMAGE_SIZE as IMAGE_SIZE,
    PLURAL as PLURAL,
    SPLIT_SEEDS as SPLIT_SEEDS,
    VEHICLE_KINDS as VEHICLE_KINDS,
    Box as Box,
    Scene as Scene,
    Vehicle as Vehicle,
    draw_scene as draw_scene,
    make_scene as make_scene,
)
from .shipped import (
    SHIPPED_TASKS as SHIPPED_TASKS,
    ShippedTask as ShippedTask,
    choose_task as choose_task,
)
from .sources import (
    check_source as check_source,
    convert_source as convert_source,
    is_preference_file as is_preference_file,
)
from .split_names import (
    SPLITS as SPLITS,
    split_name as split_name,
    split_of_file as split_of_file,
)
from .splitting import (
    SHARES as SHARES,
    photos_of as photos_of,
    refuse_shared_photos as refuse_shared_photos,
    split_by_photo as split_by_photo,
)
from .tables import (
    Sheet as Sheet,
    TableRow as TableRow,
    cell_text as cell_text,
    decode_text as decode_text,
    read_sheets as read_sheets,
)
from .tasks import (
    Question as Question,
    Task as Task,
    ask as ask,
    distinct_tasks as distinct_tasks,
    kind_of as kind_of,
    tasks_asking as tasks_asking,
    tasks_of as tasks_of,
)
from .templates import (
    CHAT_MARK as CHAT_MARK,
    END_MARK as END_MARK,
    IMAGE_MARK as IMAGE_MARK,
    count_placeholders as count_placeholders,
    find_special_mark as find_special_mark,
    repair_prompt as repair_prompt,
    require_plain_texts as require_plain_texts,
    strip_image_marks as strip_image_marks,
    strip_record as strip_record,
    texts_of_dataset as texts_of_dataset,
    texts_of_records as texts_of_records,
    texts_of_tasks as texts_of_tasks,
)
from .trl_pairs import (
    OpenedImage as OpenedImage,
    TrlPair as TrlPair,
    from_trl as from_trl,
    to_trl as to_trl,
    with_images as with_images,
)
from .truth import (
    TRUTH_KINDS as TRUTH_KINDS,
    Facts as Facts,
    Truth as Truth,
    TruthKind as TruthKind,
    check_kind as check_kind,
    plain_kind as plain_kind,
)
from .vote_log import (
    VoteEvent as VoteEvent,
    VoteReader as VoteReader,
    append_event as append_event,
    content_hash as content_hash,
    content_hashes as content_hashes,
    current_judgements as current_judgements,
    events_on as events_on,
    is_vote_file as is_vote_file,
    lock_file as lock_file,
    merge_votes as merge_votes,
    read_events as read_events,
    records_by_key as records_by_key,
    stable_hash as stable_hash,
)
from .votes import (
    ANSWER_LABELS as ANSWER_LABELS,
    Tiers as Tiers,
    Votes as Votes,
    VotingItem as VotingItem,
    annotator_agreement as annotator_agreement,
    apply_votes as apply_votes,
)
