// mutants.hpp - what mutants.pl writes into sse.hpp: each fault has a number, and is made when it
// is that of the environment's MUTANT. One build has them all.
//
// `a < b` becomes `a < mutants::less<7> < b`: the same precedence, so that no operand must be
// found, and the fault is chosen where the types are known. One that they do not allow does not
// exist.
#ifndef SSE_MUTANTS_HPP
#define SSE_MUTANTS_HPP

#include <concepts>
#include <cstdio>
#include <cstdlib>
#include <type_traits>
#include <utility>

namespace mutants {

/// Which there are, and which of them were asked for; written at the end to the file that
/// MUTANTS_REACHED names, as lines "number" and "number reached".
struct census {
    static constexpr int most = 100'000;
    static inline bool exists[most];
    static inline bool reached[most];

    ~census() {
        const char* const name = std::getenv("MUTANTS_REACHED");
        std::FILE* const file = name ? std::fopen(name, "w") : nullptr;
        if (!file) return;
        for (int id = 0; id < most; ++id) {
            if (exists[id]) std::fprintf(file, "%d%s\n", id, reached[id] ? " reached" : "");
        }
        std::fclose(file);
    }
};
inline const census at_the_end;

inline int chosen() {
    static const int id = std::getenv("MUTANT") ? std::atoi(std::getenv("MUTANT")) : 0;
    return id;
}

template <int Id>
inline const bool exists = census::exists[Id] = true;

template <int Id>
constexpr bool on() {
    if (std::is_constant_evaluated()) return false; // needs a build of its own
    static_cast<void>(exists<Id>);
    census::reached[Id] = true;
    return Id == chosen();
}

template <class T>
struct left {
    T value; // a reference
};

// NAME<first id> between two operands of OPERATOR: with that id, ONE instead, with the next, OTHER.
#define SSE_MUTANTS_BINARY(NAME, OPERATOR, ONE, OTHER)                                             \
    template <int Id, class T>                                                                     \
    struct NAME##_left : left<T> {};                                                               \
    template <int Id>                                                                              \
    struct NAME##_mark {};                                                                         \
    template <int Id>                                                                              \
    inline constexpr NAME##_mark<Id> NAME;                                                         \
    template <int Id, class T>                                                                     \
    constexpr NAME##_left<Id, T&&> operator OPERATOR(T&& a, NAME##_mark<Id>) {                     \
        return {{static_cast<T&&>(a)}};                                                            \
    }                                                                                              \
    template <int Id, class T, class U>                                                            \
    constexpr auto operator OPERATOR(NAME##_left<Id, T> a, U&& b) {                                \
        using result = decltype(a.value OPERATOR b);                                               \
        if constexpr (requires {                                                                   \
                          { a.value ONE b } -> std::convertible_to<result>;                        \
                      }) {                                                                         \
            if (on<Id>()) return static_cast<result>(a.value ONE b);                               \
            if (on<Id + 1>()) return static_cast<result>(a.value OTHER b);                         \
        }                                                                                          \
        return static_cast<result>(a.value OPERATOR b);                                            \
    }

SSE_MUTANTS_BINARY(less, <, <=, >=)
SSE_MUTANTS_BINARY(less_equal, <=, <, >)
SSE_MUTANTS_BINARY(greater, >, >=, <=)
SSE_MUTANTS_BINARY(greater_equal, >=, >, <)
#undef SSE_MUTANTS_BINARY

// The same where there is one fault alone.
#define SSE_MUTANTS_BINARY(NAME, OPERATOR, ONE)                                                    \
    template <int Id, class T>                                                                     \
    struct NAME##_left : left<T> {};                                                               \
    template <int Id>                                                                              \
    struct NAME##_mark {};                                                                         \
    template <int Id>                                                                              \
    inline constexpr NAME##_mark<Id> NAME;                                                         \
    template <int Id, class T>                                                                     \
    constexpr NAME##_left<Id, T&&> operator OPERATOR(T&& a, NAME##_mark<Id>) {                     \
        return {{static_cast<T&&>(a)}};                                                            \
    }                                                                                              \
    template <int Id, class T, class U>                                                            \
    constexpr auto operator OPERATOR(NAME##_left<Id, T> a, U&& b) {                                \
        using result = decltype(static_cast<T>(a.value) OPERATOR static_cast<U&&>(b));             \
        if constexpr (requires {                                                                   \
                          { a.value ONE b } -> std::convertible_to<result>;                        \
                      }) {                                                                         \
            if (on<Id>()) return static_cast<result>(a.value ONE b);                               \
        }                                                                                          \
        return static_cast<result>(static_cast<T>(a.value) OPERATOR static_cast<U&&>(b));          \
    }

SSE_MUTANTS_BINARY(equal, ==, !=)
SSE_MUTANTS_BINARY(not_equal, !=, ==)
SSE_MUTANTS_BINARY(plus, +, -)
SSE_MUTANTS_BINARY(minus, -, +)
#undef SSE_MUTANTS_BINARY

// Of the operators that take something on their left ->* binds the strongest: it stands for a
// prefix.
template <int Id>
struct negation {};
template <int Id>
struct increment {};
template <int Id>
struct decrement {};

template <int Id, class T>
constexpr bool operator->*(negation<Id>, T&& value) {
    return on<Id>() ? static_cast<bool>(value) : !value;
}
template <int Id, class T>
constexpr T& operator->*(increment<Id>, T& value) {
    return on<Id>() ? --value : ++value;
}
template <int Id, class T>
constexpr T& operator->*(decrement<Id>, T& value) {
    return on<Id>() ? ++value : --value;
}

template <class T>
inline const T nothing = T();

/// What a function returns or a condition is: another value of that type, the other truth, or
/// nothing. What lives elsewhere is given by reference, as functions may return one.
template <int Id, class T>
constexpr decltype(auto) other(T&& value) {
    using type = std::decay_t<T>;
    if constexpr (std::is_same_v<type, bool>) {
        return on<Id>() ? !value : static_cast<type>(value);
    } else if constexpr (std::is_enum_v<type>) {
        return !on<Id>()         ? static_cast<type>(value)
               : value == type{} ? static_cast<type>(1)
                                 : type{};
    } else if constexpr (std::is_arithmetic_v<type>) {
        return static_cast<type>(on<Id>() ? value + 1 : value);
    } else if constexpr (std::is_class_v<type> && std::is_default_constructible_v<type> &&
                         !std::is_empty_v<type>) {
        if constexpr (std::is_lvalue_reference_v<T>) {
            return static_cast<const type&>(on<Id>() ? nothing<type> : value);
        } else {
            return on<Id>() ? type() : type(static_cast<T&&>(value));
        }
    } else {
        return type(static_cast<T&&>(value));
    }
}

} // namespace mutants

#endif
