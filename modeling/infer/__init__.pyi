from .adapter import MAX_ADAPTER_BYTES as MAX_ADAPTER_BYTES, read_adapter as read_adapter
from .backbone import (
    attention_kernel as attention_kernel,
    backbone_on_meta as backbone_on_meta,
    build_backbone as build_backbone,
    load_backbone as load_backbone,
    refuse_backbone as refuse_backbone,
)
from .bundled import (
    BUNDLED_BACKBONE as BUNDLED_BACKBONE,
    bundled_tokenizer as bundled_tokenizer,
    cache_folder as cache_folder,
    convert_bundled_backbone as convert_bundled_backbone,
    require_writable as require_writable,
)
from .classifier import EmotionClassifier as EmotionClassifier
from .config import (
    AUTO_MAP as AUTO_MAP,
    CUSTOM_PIPELINES as CUSTOM_PIPELINES,
    EmotionConfig as EmotionConfig,
    read_config as read_config,
)
from .cores import at_most as at_most, check_threads as check_threads, usable_cores as usable_cores
from .decisions import (
    read_thresholds as read_thresholds,
)
from .decoding import describe_encoding as describe_encoding
from .encoders import (
    ENCODERS as ENCODERS,
    LoadedEncoder as LoadedEncoder,
    encode_in_batches as encode_in_batches,
    load_encoder as load_encoder,
)
from .errors import (
    CacheError as CacheError,
    PackageError as PackageError,
    TableError as TableError,
    as_package_error as as_package_error,
    import_optional as import_optional,
)
from .explanation import Explanation as Explanation, keep_words as keep_words, split_words as split_words
from .features import (
    Features as Features,
    cut_into_windows as cut_into_windows,
    pool_windows as pool_windows,
    tokenize as tokenize,
)
from .files import HUB_ID as HUB_ID, entries as entries, read_json as read_json, unsafe_entries as unsafe_entries
from .fused import (
    FEWEST_ROWS as FEWEST_ROWS,
    FusedOneTokenMistral as FusedOneTokenMistral,
    fold_groups as fold_groups,
    has_onednn_layout as has_onednn_layout,
    laid_out_linear as laid_out_linear,
    lay_out as lay_out,
    multiplies_bfloat16 as multiplies_bfloat16,
    packs_matrices as packs_matrices,
)
from .graph import GRAPH_RECORD as GRAPH_RECORD, Graph as Graph
from .graph_file import (
    GRAPH_FILE as GRAPH_FILE,
    INT8_GRAPH_FILE as INT8_GRAPH_FILE,
    MAX_GRAPH_BYTES as MAX_GRAPH_BYTES,
    graph_problems as graph_problems,
    read_graph as read_graph,
)
from .heads import build_heads as build_heads, build_projection as build_projection
from .language import usual_characters_per_token as usual_characters_per_token
from .merged import (
    MAX_MERGED_BYTES as MAX_MERGED_BYTES,
    merged_file as merged_file,
    merged_key as merged_key,
    read_merged as read_merged,
)
from .model import EmotionModel as EmotionModel
from .one_token import OneTokenLayer as OneTokenLayer, OneTokenMistral as OneTokenMistral
from .package import (
    SCHEMA_VERSION as SCHEMA_VERSION,
    VERSION_KEY as VERSION_KEY,
    PackageSettings as PackageSettings,
    read_settings as read_settings,
)
from .pipeline import EmotionPipeline as EmotionPipeline
from .predict import (
    predict_logits as predict_logits,
    predict_probabilities as predict_probabilities,
    suits_one_thread as suits_one_thread,
    to_tensors as to_tensors,
)
from .quantization import check_quantized as check_quantized
from .separated import quote_names as quote_names
from .stops import (
    EXHAUSTED as EXHAUSTED,
    INTERRUPTED as INTERRUPTED,
    TERMINATED as TERMINATED,
    catch_sigterm as catch_sigterm,
    describe_stop as describe_stop,
)
from .storage import (
    find_damage as find_damage,
    publish as publish,
    seal as seal,
    staging as staging,
)
from .tables import (
    ROW_SUFFIXES as ROW_SUFFIXES,
    TEXT_SUFFIX as TEXT_SUFFIX,
    Row as Row,
    find_column as find_column,
    read_rows as read_rows,
    read_texts as read_texts,
    split_name as split_name,
    split_suffix as split_suffix,
)
from .texts import (
    is_blank as is_blank,
)
from .tokenizer import (
    MAX_TOKENIZER_BYTES as MAX_TOKENIZER_BYTES,
    TOKENIZER_FILE as TOKENIZER_FILE,
    build_tokenizer as build_tokenizer,
    read_tokenizer as read_tokenizer,
)
from .weights import (
    HEAD_FILES as HEAD_FILES,
    read_head as read_head,
    read_head_file as read_head_file,
    refuse_different_heads as refuse_different_heads,
    refuse_large_header as refuse_large_header,
)
