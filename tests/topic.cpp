// topic.cpp - covers >>topic: the canonical form of topics, who sees what is published where, and
// the tree of subscribers against a slow reference over random operations.
#include "sse.hpp"

#include "support/dice.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace topic_test {

using namespace std::string_literals;
using namespace std::string_view_literals;
using sse::detail::canonical_topic;
using sse::detail::covers;
using sse::detail::frame;
using sse::detail::horizon;
using sse::detail::make_frame;
using sse::detail::topic_bits;
using sse::detail::topic_set;

namespace {

void check_canonical(std::string_view text, std::string_view topic) {
    CAPTURE(text);
    CHECK(canonical_topic(text) == std::optional<std::string>(topic));
    CHECK(canonical_topic(topic) == std::optional<std::string>(topic)); // and it stays so
    CHECK(sse::detail::checked_topic(text) == topic);
}

void check_no_topic(std::string_view text) {
    CAPTURE(text);
    CHECK(!canonical_topic(text));
    try {
        (void)sse::detail::checked_topic(text);
        FAIL_CHECK("was taken for a topic");
    } catch (const std::system_error& e) {
        CHECK(e.code() == sse::errc::bad_topic);
        const std::string said = e.what();
        CHECK(said.find(text) != said.npos);           // which one
        CHECK(said.find("/prices/gold") != said.npos); // what to write instead
    }
}

} // namespace

// ---- paths --------------------------------------------------------------------------------------

TEST_CASE("slashes at the ends of a topic do not matter") {
    for (const auto text : {"pets/cats"sv, "/pets/cats"sv, "pets/cats/"sv, "/pets/cats/"sv}) {
        check_canonical(text, "/pets/cats");
    }
    check_canonical("pets", "/pets");
    check_canonical("/pets", "/pets");
}

TEST_CASE("the empty topic is the root") {
    check_canonical("", "");
    check_canonical("/", "");
}

TEST_CASE("a topic may hold any text that is not a control character") {
    check_canonical("/a b", "/a b");
    check_canonical("/Katzen/M\xC3\xBCsli", "/Katzen/M\xC3\xBCsli");
    check_canonical("/...", "/...");
    check_canonical("/.hidden", "/.hidden");
    check_canonical("/a.", "/a.");
    check_canonical("/*", "/*");
    check_canonical("/a?b=c#d%2f", "/a?b=c#d%2f");
    check_canonical("/Pets", "/Pets"); // case matters
}

TEST_CASE("a topic with an empty segment is refused") {
    check_no_topic("//");
    check_no_topic("///");
    check_no_topic("//pets");
    check_no_topic("pets//");
    check_no_topic("/pets//cats");
    check_no_topic("/pets/cats//");
}

TEST_CASE("a topic with a dot segment is refused") {
    check_no_topic(".");
    check_no_topic("..");
    check_no_topic("/../pets");
    check_no_topic("/pets/../cats");
    check_no_topic("/pets/./cats");
    check_no_topic("/pets/..");
    check_no_topic("/pets/./");
}

TEST_CASE("a topic with a control character is refused") {
    for (int c = 0; c < 0x20; ++c) {
        const std::string control(1, static_cast<char>(c));
        CAPTURE(c);
        CHECK(!canonical_topic(control));
        CHECK(!canonical_topic("/a" + control));
        CHECK(!canonical_topic("/a/" + control + "b/c"));
    }
    CHECK(!canonical_topic("/a\x7f"));
    check_no_topic("/a\nb");
}

TEST_CASE("a subscriber of a topic sees what is published to it and below it") {
    CHECK(covers("/pets", "/pets"));
    CHECK(covers("/pets", "/pets/cats"));
    CHECK(covers("/pets", "/pets/dogs/corgi"));
    CHECK(covers("", "/pets"));
    CHECK(covers("", ""));
}

TEST_CASE("a subscriber of a topic does not see its parents, its siblings or its namesakes") {
    CHECK(!covers("/pets", "/petshop"));
    CHECK(!covers("/pets", "/petshop/cats"));
    CHECK(!covers("/pets", "/pet"));
    CHECK(!covers("/pets", ""));
    CHECK(!covers("/pets/cats", "/pets"));
    CHECK(!covers("/pets/cats", "/pets/dogs"));
    CHECK(!covers("/pets", "/Pets"));
    CHECK(!covers("/pets", "/shop/pets"));
}

// ---- tree ---------------------------------------------------------------------------------------

namespace {

struct subscriber {
    std::string name;
};

using tree = sse::detail::topic_tree<subscriber>;

void subscribe(tree& topics, std::string_view topic, subscriber& who) {
    topics.find_or_add(topic).subscribers.push_back(&who);
}

void unsubscribe(tree& topics, std::string_view topic, subscriber& who) {
    tree::node& node = topics.find_or_add(topic);
    const auto found = std::find(node.subscribers.begin(), node.subscribers.end(), &who);
    REQUIRE(found != node.subscribers.end());
    *found = node.subscribers.back();
    node.subscribers.pop_back();
    topics.prune(&node);
}

/// The topics of the nodes that see what is published to this one, in the order they are visited.
std::vector<std::string> concerned(tree& topics, std::string_view published) {
    std::vector<std::string> paths;
    topics.for_each_concerned(published, [&](tree::node& n) { paths.push_back(n.path); });
    return paths;
}

using paths = std::vector<std::string>;

} // namespace

TEST_CASE("the tree finds a topic's node again and knows its path") {
    tree topics;
    CHECK(topics.empty());
    tree::node& cats = topics.find_or_add("/pets/cats");
    CHECK(cats.path == "/pets/cats");
    CHECK(&topics.find_or_add("/pets/cats") == &cats);
    CHECK(cats.parent == &topics.find_or_add("/pets"));
    CHECK(cats.segment == "cats");
    CHECK(cats.parent->segment == "pets");
    CHECK(cats.parent->parent == &topics.find_or_add(""));
    CHECK(topics.find_or_add("").parent == nullptr);
    CHECK(topics.find_or_add("").path.empty());
    CHECK(!topics.empty());
}

TEST_CASE("concerned are the topic and its parents, the root first, where anyone subscribes") {
    tree topics;
    subscriber ann;
    subscriber bob;
    subscribe(topics, "/pets/dogs/corgi", ann);
    subscribe(topics, "/pets", bob);
    CHECK(concerned(topics, "/pets/dogs/corgi") == paths{"/pets", "/pets/dogs/corgi"});
    CHECK(concerned(topics, "/pets/dogs/corgi/ears") == paths{"/pets", "/pets/dogs/corgi"});
    CHECK(concerned(topics, "/pets/dogs") == paths{"/pets"});
    CHECK(concerned(topics, "/pets/cats") == paths{"/pets"});
    CHECK(concerned(topics, "/petshop") == paths{});
    CHECK(concerned(topics, "/pet") == paths{});
    CHECK(concerned(topics, "") == paths{});
    subscribe(topics, "", ann);
    CHECK(concerned(topics, "") == paths{""});
    CHECK(concerned(topics, "/petshop") == paths{""});
    CHECK(concerned(topics, "/pets/cats") == paths{"", "/pets"});
}

TEST_CASE("pruning frees a topic and its parents as far as nobody needs them") {
    tree topics;
    subscriber ann;
    subscriber bob;
    subscribe(topics, "/a/b/c/d", ann);
    subscribe(topics, "/a/b", bob);
    unsubscribe(topics, "/a/b/c/d", ann);
    CHECK(topics.find_or_add("/a/b").children.empty());
    CHECK(concerned(topics, "/a/b/c/d") == paths{"/a/b"});
    unsubscribe(topics, "/a/b", bob);
    CHECK(topics.empty());
}

TEST_CASE("pruning keeps a topic that has other subscribers or other topics below it") {
    tree topics;
    subscriber ann;
    subscriber bob;
    subscribe(topics, "/a", ann);
    subscribe(topics, "/a", bob);
    subscribe(topics, "/a/b", ann);
    unsubscribe(topics, "/a", ann);
    CHECK(concerned(topics, "/a") == paths{"/a"});
    unsubscribe(topics, "/a", bob);
    CHECK(concerned(topics, "/a") == paths{});
    CHECK(concerned(topics, "/a/b") == paths{"/a/b"});
    unsubscribe(topics, "/a/b", ann);
    CHECK(topics.empty());
}

TEST_CASE("pruning keeps a topic whose frames are still to be handed out") {
    tree topics;
    tree::node& node = topics.find_or_add("/a/b");
    node.pending.push_back(7);
    topics.prune(&node);
    CHECK(&topics.find_or_add("/a/b") == &node);
    node.pending.clear();
    topics.prune(&node);
    CHECK(topics.empty());
}

TEST_CASE("pruning the root leaves it usable") {
    tree topics;
    topics.prune(&topics.find_or_add(""));
    subscriber ann;
    subscribe(topics, "", ann);
    CHECK(!topics.empty());
    CHECK(concerned(topics, "/a") == paths{""});
    unsubscribe(topics, "", ann);
    CHECK(topics.empty());
}

// ---- tree against reference ---------------------------------------------------------------------

namespace {

/// Topics of few and confusable segments, so that they often meet.
std::string random_topic(support::dice& dice) {
    constexpr std::string_view segments[] = {"a", "ab", "b", "a.b", "-", "\xC3\xA4", "a b"};
    std::string topic;
    for (std::size_t depth = dice.below(5); depth > 0; --depth) {
        topic.append("/").append(dice.one_of(segments));
    }
    return topic;
}

/// Whether `published` is `subscribed` with nothing or more segments after it.
bool sees(std::string subscribed, std::string published) {
    return (published + "/").find(subscribed + "/") == 0;
}

/// The whole truth as a list.
struct reference {
    std::multimap<std::string, subscriber*> subscriptions;

    std::multiset<subscriber*> who_sees(const std::string& published) const {
        std::multiset<subscriber*> out;
        for (const auto& [topic, who] : subscriptions) {
            if (sees(topic, published)) out.insert(who);
        }
        return out;
    }
    /// All topics with subscribers, and their parents.
    std::set<std::string> nodes() const {
        std::set<std::string> out = {""};
        for (const auto& [topic, who] : subscriptions) {
            for (std::size_t end = topic.size(); end != 0; end = topic.rfind('/', end - 1)) {
                out.insert(topic.substr(0, end));
            }
        }
        return out;
    }
};

void collect(const tree::node& at, const std::string& path, std::set<std::string>& out) {
    out.insert(path);
    for (const auto& [segment, child] : at.children) collect(*child, path + "/" + segment, out);
}

std::set<std::string> nodes_of(tree& topics) {
    std::set<std::string> out;
    collect(topics.find_or_add(""), "", out);
    return out;
}

std::multiset<subscriber*> who_sees(tree& topics, const std::string& published) {
    std::multiset<subscriber*> out;
    std::size_t depth = 0;
    topics.for_each_concerned(published, [&](tree::node& n) {
        CHECK((out.empty() || n.path.size() > depth)); // from the root downwards
        depth = n.path.size();
        out.insert(n.subscribers.begin(), n.subscribers.end());
    });
    return out;
}

} // namespace

TEST_CASE("the tree agrees with a plain list of subscriptions over random operations") {
    support::dice dice(20250121);
    std::vector<subscriber> people(20);
    tree topics;
    reference truth;
    for (int step = 0; step < 8'000; ++step) {
        CAPTURE(step);
        const bool growing = step / 500 % 2 == 0; // the tree fills and empties again and again
        if (truth.subscriptions.empty() || (dice.one_in(3) != growing)) {
            const std::string topic = random_topic(dice);
            subscriber& who = people[dice.below(people.size())];
            subscribe(topics, topic, who);
            truth.subscriptions.emplace(topic, &who);
        } else {
            auto gone = truth.subscriptions.begin();
            std::advance(gone, dice.below(truth.subscriptions.size()));
            unsubscribe(topics, gone->first, *gone->second);
            truth.subscriptions.erase(gone);
        }
        const std::string published = random_topic(dice);
        CAPTURE(published);
        REQUIRE((who_sees(topics, published) == truth.who_sees(published)));
        REQUIRE(topics.empty() == truth.subscriptions.empty());
        if (step % 50 == 0) REQUIRE((nodes_of(topics) == truth.nodes()));
    }
    while (!truth.subscriptions.empty()) {
        const auto last = truth.subscriptions.begin();
        unsubscribe(topics, last->first, *last->second);
        truth.subscriptions.erase(last);
    }
    CHECK(topics.empty());
}

TEST_CASE("the segments of several topics are counted together") {
    using sse::detail::count_segments;
    CHECK(count_segments({}) == 0);
    CHECK(count_segments({""}) == 0);
    CHECK(count_segments({"/a", "/a/b", "", "/a/b/c"}) == 6);
}

TEST_CASE("covers agrees with the plain definition for random topics") {
    support::dice dice(20250122);
    for (int round = 0; round < 20'000; ++round) {
        const std::string a = random_topic(dice);
        const std::string b = dice.one_in(2) ? a + random_topic(dice) : random_topic(dice);
        CAPTURE(a);
        CAPTURE(b);
        CHECK(covers(a, b) == sees(a, b));
    }
}

TEST_CASE("the bits of a topic are among those of all that is published to it or below it") {
    support::dice dice(20261130);
    for (int round = 0; round < 20'000; ++round) {
        const std::string a = random_topic(dice);
        const std::string b = dice.one_in(2) ? a + random_topic(dice) : random_topic(dice);
        CAPTURE(a);
        CAPTURE(b);
        topic_set of_a(topic_bits(a, false));
        const bool may_have = of_a.may_have(topic_bits(b, true)) || of_a.is_all();
        if (sees(a, b)) CHECK(may_have);
    }
    CHECK(topic_bits("", false) == 0);
    CHECK(topic_bits("/a", true) == topic_bits("/a", false));
}

TEST_CASE("bits tell most topics apart, whatever they are below") {
    for (const std::string above : {"", "/a", "/prices/europe/stocks"}) {
        CAPTURE(above);
        std::size_t mistaken = 0;
        for (int n = 0; n < 100; ++n) {
            const topic_set one(topic_bits(above + "/" + std::to_string(n), false));
            for (int other = 0; other < 1'000; ++other) {
                const auto bits = topic_bits(above + "/" + std::to_string(other), true);
                mistaken += other != n && one.may_have(bits);
            }
        }
        CHECK(mistaken < 100 * 1'000 / 50);
    }
}

TEST_CASE("a set of topics has what any of them has, and too many or the root are all") {
    const auto bits = [](std::string_view topic) { return topic_bits(topic, false); };
    topic_set some;
    CHECK(some.is_all());
    for (const char* const topic : {"/a", "/b", "/c", "/d"}) {
        some.add(bits(topic));
        CHECK(!some.is_all());
        CHECK(some.may_have(topic_bits(topic + "/x"s, true)));
    }
    CHECK(some.may_have(bits("/a")));
    CHECK(!some.may_have(bits("/e")));
    topic_set five = some;
    five.add(bits("/e"));
    CHECK(five.is_all());
    for (topic_set with_root : {topic_set(), topic_set(bits("/a"))}) {
        with_root.add(bits(""));
        CHECK(with_root.is_all());
        with_root.add(bits("/a"));
        CHECK(with_root.is_all());
    }
}

TEST_CASE("random text is refused or has a canonical form that stays the same") {
    support::dice dice(20250123);
    for (int round = 0; round < 20'000; ++round) {
        const std::string text = dice.bytes(12, "//..a\n"sv);
        CAPTURE(text);
        const auto topic = canonical_topic(text);
        if (!topic) continue;
        CHECK(canonical_topic(*topic) == topic);
        CHECK((topic->empty() || topic->front() == '/'));
        CHECK(!topic->ends_with('/'));
        CHECK(topic->find("//") == std::string::npos);
        CHECK(("/" + text + "/").find(*topic + "/") != std::string::npos);
    }
}

TEST_CASE("what is forgotten hides more from who wants each than from who wants the newest") {
    using loss = horizon::loss;
    const auto replayed = make_frame(frame::kind::topic, "/a", {.data = "x"});
    const auto ephemeral = make_frame(frame::kind::topic, "/a", {.data = "x", .ephemeral = true});
    horizon gone;
    CHECK(gone.hides(loss::each, 0) == 0);
    CHECK(gone.hides(loss::anyone, 0) == 0);

    gone.raise(*replayed, 4, loss::each);
    CHECK(gone.hides(loss::each, 0) == 5);
    CHECK(gone.hides(loss::anyone, 0) == 0);

    gone.raise(*replayed, 2, loss::anyone); // no mark goes back
    CHECK(gone.hides(loss::each, 0) == 5);
    CHECK(gone.hides(loss::anyone, 0) == 3);

    gone.raise(*ephemeral, 8, loss::anyone);
    CHECK(gone.hides(loss::each, 8) == 9);
    CHECK(gone.hides(loss::each, 9) == 5); // it came too late for that one
    CHECK(gone.hides(loss::anyone, 0) == 3);

    horizon both;
    both.raise(*replayed, 6, loss::each);
    both.raise(gone);
    CHECK(both.hides(loss::each, 9) == 7);
    CHECK(both.hides(loss::each, 0) == 9);
    CHECK(both.hides(loss::anyone, 0) == 3);
}

} // namespace topic_test
