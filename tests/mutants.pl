# Reads sse.hpp and writes it with the faults of mutants.hpp in its sections without I/O.
#   mutants.pl sse.hpp OUTPUT LIST [LINE...]
# LIST gets a line for each: number, line, text of the line with {what -> what it becomes}. Lines
# named after it get none. Lines stay where they are, so that what a compiler says fits both.
use strict;
use warnings;

my ($source, $output, $list, @without) = @ARGV;
my %without = map { $_ => 1 } @without;
my %tests = ( # of each section, the file that knows it best
    message => 'message', encoding => 'message', event => 'parser', parser => 'parser',
    request => 'head', head => 'head', cors => 'origin', origin => 'origin', peer => 'peer');
my $last = 'hub'; # from this section on nothing is needed

open my $in, '<', $source or die "$source: $!\n";
my @lines = <$in>;
open my $out, '>', $output or die "$output: $!\n";
open my $names, '>', $list or die "$list: $!\n";

my $next_id = 1;
my $file; # of the tests of what is mutated
my $mutated = join '|', sort keys %tests;
my ($text, $first_line) = ('', 1);
print $out "#include \"mutants.hpp\"\n#line 1\n";
for my $number (1 .. @lines) {
    if ($lines[$number - 1] =~ m{^// >>(\w+)}) {
        section();
        $first_line = $number;
        last if $1 eq $last;
    }
    $text .= $lines[$number - 1];
}
print $out "#endif\n} // namespace sse\n#endif\n";

sub section {
    my ($name) = $text =~ m{\A// >>($mutated) /};
    $file = $name ? $tests{$name} : '';
    print $out $name ? mutate($text, $first_line) : $text;
    $text = '';
}

# A token has text, a line, what is put before and behind it, and for a bracket its partner.
sub tokens_of {
    my ($code, $line) = @_;
    my (@tokens, @open);
    while ($code =~ m{\G(?: (?<blank> \s+ | //[^\n]*\n )
                          | (?<string> "(?:\\.|[^"\\])*" ) | (?<char> '(?:\\.|[^'\\])+' )
                          | (?<number> \d[\w']* ) | (?<word> \w+ )
                          | (?<sign> <<= | >>= | <=> | \.\.\. | ->\* | :: | -> | \+\+ | -- | << | [-+*/%&|^!=<>]=
                                   | && | \|\| | [^\s\w] ) )}gcxs) {
        my ($kind) = keys %+;
        my $token = {kind => $kind, text => $+{$kind}, line => $line, before => '', behind => ''};
        $line += () = $token->{text} =~ /\n/g;
        push @tokens, $token;
        if ($kind eq 'sign' && $token->{text} =~ /^[(\[{]$/) {
            push @open, $#tokens;
        } elsif ($kind eq 'sign' && $token->{text} =~ /^[)\]}]$/ && @open) {
            my $partner = pop @open;
            $token->{partner} = $partner;
            $tokens[$partner]{partner} = $#tokens;
        }
        $token->{inside} = @open ? $tokens[$open[-1]]{text} : '';
    }
    return @tokens;
}

sub mutate {
    my ($code, $line) = @_;
    my @t = tokens_of($code, $line);
    my @source = split /\n/, $code;

    # Columns, to show where on its line a fault is.
    my ($column, $at_line) = (0, $line);
    for my $token (@t) {
        ($column, $at_line) = (0, $token->{line}) if $token->{line} != $at_line;
        $token->{column} = $column;
        $column += length $token->{text};
        if ($token->{text} =~ /\n([^\n]*)\z/) {
            $column = length $1;
            $at_line = $token->{line} + ($token->{text} =~ tr/\n//);
        }
    }

    # What the compiler needs as it stands: types, constraints, labels.
    my %fixed = %without;
    for my $i (0 .. $#source) {
        $fixed{$line + $i} = 1
            if $source[$i] =~ /^\s*(?:#|template|requires|static_assert|enum|using|case|friend)\b|if constexpr|= (?:default|delete);/
            || $source[$i] =~ /^\s*\(?std::is_invocable_v/;
    }

    # fault FIRST, LAST, BECOMES: the next number, listed as one of these tokens, or 0.
    my $fault = sub {
        my ($from, $to, $becomes) = @_;
        my $n = $t[$from]{line};
        return 0 if $fixed{$n};
        my $shown = $source[$n - $line];
        my $start = $t[$from]{column};
        my $end = $t[$to]{line} == $n ? $t[$to]{column} + length $t[$to]{text} : length $shown;
        my $what = substr $shown, $start, $end - $start;
        substr($shown, $start, $end - $start) = "{$what -> $becomes}";
        $shown =~ s/^\s+//;
        print $names "$next_id\t$n\t$shown\t$file\n";
        return $next_id++;
    };
    my $wrap = sub { # the last that is put around the same tokens is the outermost
        my ($from, $to, $before, $behind) = @_;
        $t[$from]{before} = $before . $t[$from]{before};
        $t[$to]{behind} .= $behind;
    };
    my $step = sub { # the next token in a direction that is no blank
        my ($i, $by) = @_;
        do { $i += $by } while $i >= 0 && $i < @t && $t[$i]{kind} eq 'blank';
        return $i;
    };
    my $text = sub { my $i = shift; $i >= 0 && $i < @t ? $t[$i]{text} : '' };
    my $spaced = sub {
        my $i = shift;
        $i > 0 && $i < $#t && $t[$i - 1]{kind} eq 'blank' && $t[$i + 1]{kind} eq 'blank';
    };
    # The end of an operand in a direction: before what binds as weakly as the operator.
    my $operand = sub {
        my ($i, $by, $weak) = @_;
        my $end = $i = $step->($i, $by);
        while ($i >= 0 && $i < @t) {
            my $token = $t[$i];
            my $bracket = $by > 0 ? '[(\[{]' : '[)\]}]';
            if ($token->{kind} eq 'sign' && $token->{text} =~ /^$bracket$/) {
                $i = $token->{partner};
            } elsif ($token->{kind} eq 'sign' && $token->{text} =~ /^(?:[()\[\]{},;?:=]|[-+*\/%&|^]=|$weak)$/
                || $token->{text} eq 'return') {
                last;
            }
            $end = $i;
            $i = $step->($i, $by);
        }
        return $end;
    };

    my %binary = (
        '<' => ['less', '<=', '>='], '<=' => ['less_equal', '<', '>'],
        '>' => ['greater', '>=', '<='], '>=' => ['greater_equal', '>', '<'],
        '==' => ['equal', '!='], '!=' => ['not_equal', '=='],
        '+' => ['plus', '-'], '-' => ['minus', '+'],
    );
    my %operand_seen;
    my $statement = qr/^(?:const|constexpr|static|auto|using|struct|class|enum|template|inline|return|co_return|if|for|while|do|else|switch|case|default|explicit|friend|public|private|throw|namespace|char|bool|int|unsigned|void|asm)$/;
    for my $i (0 .. $#t) {
        my ($kind, $sign) = @{$t[$i]}{qw(kind text)};
        my $behind = $step->($i, 1);
        my $ahead = $step->($i, -1);
        if ($kind eq 'sign' && $binary{$sign} && $spaced->($i)) {
            my ($name, @others) = @{$binary{$sign}};
            next if $sign eq '+' && ($text->($ahead) =~ /^"/ || $text->($behind) =~ /^"/);
            my ($id) = map { $fault->($i, $i, $_) } @others;
            $t[$i]{behind} .= " mutants::$name<$id> $sign" if $id;
        } elsif ($kind eq 'sign' && $sign =~ /^(?:&&|\|\|)$/ && $spaced->($i)) {
            my ($constant, $join) = $sign eq '&&' ? ('true', '||') : ('false', '&&');
            my $weak = $sign eq '&&' ? '&&|\|\|' : '\|\|';
            for my $by (-1, 1) {
                my $far = $operand->($i, $by, $weak);
                my ($from, $to) = $by < 0 ? ($far, $ahead) : ($behind, $far);
                next if $operand_seen{"$from $to"}++;
                my $id = $fault->($from, $to, $constant) or next;
                my $not = $sign eq '&&' ? '' : '!';
                $wrap->($from, $to, "(${not}mutants::on<$id>() $join (", '))');
            }
        } elsif ($kind eq 'sign' && $sign eq '!') {
            my $id = $fault->($i, $i, '') or next;
            $t[$i]{replaced} = "mutants::negation<$id>()->*";
        } elsif ($kind eq 'sign' && $sign =~ /^(?:\+\+|--)$/) {
            if ($i + 1 < @t && $t[$i + 1]{kind} eq 'word') {
                my $id = $fault->($i, $i, $sign eq '++' ? '--' : '++') or next;
                my $name = $sign eq '++' ? 'increment' : 'decrement';
                $t[$i]{replaced} = "mutants::$name<$id>()->*";
            } elsif ($t[$i - 1]{kind} eq 'word') {
                my $from = $i - 1;
                $from -= 2 while $text->($from - 1) =~ /^(?:\.|->)$/;
                my $whole = join '', map { $_->{text} } @t[$from .. $i - 1];
                my $id = $fault->($i, $i, $sign eq '++' ? '--' : '++') or next;
                my $back = $sign eq '++' ? '--' : '++';
                $wrap->($from, $i, "(mutants::on<$id>() ? $whole$back : ", ')');
            }
        } elsif ($sign =~ /^(?:true|false)$/) {
            my $other = $sign eq 'true' ? 'false' : 'true';
            my $id = $fault->($i, $i, $other) or next;
            $wrap->($i, $i, "(mutants::on<$id>() ? $other : ", ')');
        } elsif ($kind eq 'number' && $sign =~ /^(0x[0-9a-f]+|\d+)(u?)$/ && $text->($ahead) ne 'case') {
            my ($digits, $suffix) = ($1, $2);
            my $hex = $digits =~ /^0x/;
            next if length $digits > 16; # a mask
            my $value = $hex ? hex $digits : $digits;
            for my $near ($value + 1, $value > 0 ? $value - 1 : ()) {
                my $becomes = ($hex ? sprintf('0x%x', $near) : $near) . $suffix;
                my $id = $fault->($i, $i, $becomes) or next;
                $wrap->($i, $i, "(mutants::on<$id>() ? $becomes : ", ')');
            }
        } elsif ($sign eq 'return' && $text->($behind) !~ /^(?:[;{]|true|false)$/) {
            my $end = $behind;
            while ($text->($end) ne ';') {
                $end = $t[$end]{partner} if $text->($end) =~ /^[(\[{]$/;
                $end = $step->($end, 1);
            }
            my $to = $step->($end, -1);
            my $whole = join '', map { $_->{text} } @t[$behind .. $to];
            next if $whole =~ /^(?:std::nullopt|\d+)$/ || $whole =~ /^\[/;
            my $id = $fault->($behind, $to, 'another value') or next;
            $wrap->($behind, $to, "mutants::other<$id>(", ')');
        } elsif ($sign =~ /^(?:if|while)$/ && $text->($behind) eq '(') {
            my ($from, $to) = ($step->($behind, 1), $step->($t[$behind]{partner}, -1));
            my ($plain, $depth) = (1, 0);
            for (my $j = $from; $j <= $to; ++$j) {
                $plain = 0 if $t[$j]{kind} eq 'sign' && $text->($j) =~ /^(?:;|=|!|&&|\|\||[=!<>]=)$/
                    || $text->($j) =~ /^[<>]$/ && $spaced->($j);
                $j = $t[$j]{partner} if $text->($j) =~ /^[(\[{]$/;
            }
            next unless $plain;
            my $id = $fault->($from, $to, 'its opposite') or next;
            $wrap->($from, $to, "mutants::other<$id>(static_cast<bool>(", '))');
        }
        # A statement that could be left out.
        next unless $kind eq 'word' || $kind eq 'sign' && $sign =~ /^(?:\+\+|--)$/;
        next if $sign =~ $statement || $t[$i]{inside} ne '{';
        my $begins = $text->($ahead) =~ /^[;{}]$|^else$/;
        if ($text->($ahead) eq ')') {
            my $before = $text->($step->($t[$ahead]{partner}, -1));
            $begins ||= $before =~ /^(?:if|for|while)$/;
        } elsif ($text->($ahead) eq ':') {
            my $j = $ahead;
            $j = $step->($j, -1) until $j <= 0 || $text->($step->($j, -1)) =~ /^[;{}]$/;
            $begins ||= $text->($j) =~ /^(?:case|default)$/;
        }
        next unless $begins;
        my ($end, $head) = ($i, '');
        my $past_name = 0;
        while ($end < @t && $text->($end) ne ';') {
            last if $text->($end) =~ /^[)\]}]$/;
            $past_name ||= $text->($end) =~ /^(?:=|[-+|&]=)$/;
            $head .= $text->($end) =~ /^[(\[{]$/ ? '()' : $text->($end) unless $past_name;
            $end = $t[$end]{partner} if $text->($end) =~ /^[(\[{]$/;
            ++$end;
        }
        next unless $end < @t && $text->($end) eq ';';
        next if $head =~ /[\w>*&]\s+[\w&*]/; # a declaration
        next if $head =~ /\)\s+\w|\)\s*:/;                              # of a function
        my $id = $fault->($i, $end, '') or next;
        $wrap->($i, $end, "{ if (!mutants::on<$id>()) { ", ' } }');
    }

    return join '', map { $_->{before} . ($_->{replaced} // $_->{text}) . $_->{behind} } @t;
}
