"""A table of web analytics with the columns that ClickBench's queries ask for, made up: many rows for few values, as in life."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

INT16 = (
    "JavaEnable GoodEvent CounterClass OS UserAgent IsRefresh RefererCategoryID URLCategoryID ResolutionWidth ResolutionHeight ResolutionDepth "
    "FlashMajor FlashMinor NetMajor NetMinor UserAgentMajor CookieEnable JavascriptEnable IsMobile MobilePhone TraficSourceID SearchEngineID "
    "AdvEngineID IsArtifical WindowClientWidth WindowClientHeight ClientTimeZone SilverlightVersion1 IsLink IsDownload IsNotBounce IsOldCounter "
    "IsEvent IsParameter DontCountHits WithHash Age Sex Income Interests Robotness HistoryLength HTTPError SocialSourceNetworkID ParamCurrencyID HasGCLID"
).split()
INT32 = "ClientIP RegionID RefererRegionID URLRegionID IPNetworkID CodeVersion HID RemoteIP WindowName OpenerName SendTiming FetchTiming CLID".split()
INT64 = "WatchID FUniqID ParamPrice RefererHash URLHash".split()
STRINGS = "FlashMinor2 UserAgentMinor MobilePhoneModel Params PageCharset OriginalURL HitColor BrowserLanguage BrowserCountry SocialAction UTMSource FromTag".split()
# What the queries look for.
USER = 435090932899640449
URL_HASH, REFERER_HASH = 2868770270353813622, 3594120000172545465


def write(path, rows=30_000, seed=7):
    """Writes such a table, in row groups of a quarter of the rows."""
    random = np.random.default_rng(seed)
    skewed = lambda most: np.minimum(random.zipf(1.4, rows), most) - 1
    columns = {}
    for name in INT16:
        columns[name] = pa.array(skewed(40).astype(np.int16))
    for name in INT32:
        columns[name] = pa.array(skewed(5_000).astype(np.int32))
    for name in INT64:
        columns[name] = pa.array(random.integers(-(2**62), 2**62, rows))
    for name in STRINGS:
        columns[name] = pa.array([f"{name}-{value}" if value else "" for value in skewed(60)])
    columns["IsRefresh"] = columns["DontCountHits"] = pa.array((random.random(rows) < 0.1).astype(np.int16))
    columns["IsDownload"] = pa.array(np.zeros(rows, np.int16))
    columns["TraficSourceID"] = pa.array(random.integers(-1, 9, rows).astype(np.int16))
    columns["CounterID"] = pa.array(random.choice([62, 17, 38], rows, p=[0.6, 0.3, 0.1]).astype(np.int32))
    columns["EventDate"] = pa.array(random.integers(15_880, 15_920, rows).astype(np.uint16))
    columns["EventTime"] = pa.array(random.integers(1_372_000_000, 1_375_400_000, rows))
    users = skewed(2_000) * 7_919 - 5_000
    users[rows // 2] = USER
    columns["UserID"] = pa.array(users)
    hosts = ["google.ru", "www.google.com", "example.com", "yandex.ru", "lib.example.org"]
    address = lambda: [f"http://{hosts[value % 5]}/page/{value}?q={value % 13}" if value else "" for value in skewed(3_000)]
    columns["URL"], columns["Referer"] = pa.array(address()), pa.array(address())
    columns["Title"] = pa.array([f"{['Google', 'Новости', 'Weather'][value % 3]} {value}" if value else "" for value in skewed(500)])
    columns["SearchPhrase"] = pa.array([f"phrase {value} карта" if value > 1 else "" for value in skewed(900)])
    for name, value in {"URLHash": URL_HASH, "RefererHash": REFERER_HASH}.items():
        columns[name] = pa.array(np.where(random.random(rows) < 0.3, value, columns[name].to_numpy()))
    parquet.write_table(pa.table(columns), path, row_group_size=rows // 4)
