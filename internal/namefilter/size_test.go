package namefilter

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp/syntax"
	"strings"
	"testing"
)

// alternatives joins what name makes of 0 to n-1.
func alternatives(n int, name func(int) string) string {
	names := make([]string, n)
	for i := range names {
		names[i] = name(i)
	}
	return strings.Join(names, "|")
}

// No filter that people write is refused.
func TestTaken(t *testing.T) {
	for _, pattern := range []string{
		``, `.`, `.*`, `^.*$`, `door`, `door$`, `^door`, `^door-1$`, `(?i)^DOOR`, `^(?i:door)-\d+$`, `^[a-z]`,
		`.{0,48}`, `^.{1,48}$`, `.{48}`, `.{0,255}`, `.{1,1000}`, `.{1000}`, `^[A-Za-z0-9:_-]{1,48}$`, `\w+`, `\d{1,10}`, `[^x]{0,48}`,
		`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`, `^(?:[0-9A-F]{2}:){5}[0-9A-F]{2}$`,
		`^([a-z]{1,20}[:_-]){1,20}\d{1,6}$`, `(.{0,48}-){4}`, `^(\w{1,10}-){1,10}$`, `^((\d{1,3})\.){3}\d{1,3}$`,
		`^门-\p{Han}+$`, `^[\p{L}\p{N}_:-]{1,48}$`, `\pL{1,48}-\pL{1,48}`, `^\P{Greek}{1,48}$`, `(?i)[а-яё]+`, `(?i)[α-ω]|[а-я]|[À-ÿ]`, `[一-龥]+`, `[^\x00-\x7f]`,
		`^(?:` + alternatives(145, func(i int) string { return fmt.Sprintf("d%05d", i*37) }) + `)$`,
		alternatives(146, func(i int) string { return fmt.Sprintf("d%05d", i*37) }),
		alternatives(340, func(i int) string { return fmt.Sprintf("%c%c", 'A'+i%26, 'a'+i/26) }),
		`(?i)` + alternatives(255, func(i int) string { return fmt.Sprintf("%03x", i) }),
		alternatives(200, func(i int) string { return fmt.Sprintf("(%02x)", i) }),
		strings.Repeat("门", 1024), strings.Repeat("a?", 512), strings.Repeat(".*", 512), strings.Repeat("()", 512), strings.Repeat("[ab]", 256),
		strings.Repeat("|", 1024), strings.Repeat("a*|", 341), strings.Repeat(`\pL`, 60),
	} {
		if _, err := Parse(pattern); err != nil {
			t.Errorf("%s %v", shorten(pattern), err)
		}
	}
}

func TestTooLarge(t *testing.T) {
	for _, tc := range []struct{ pattern, want string }{
		{
			"(.?.?.?.?.?.?.?.?.?.?){100}!",
			"is too large: it would be compiled to 2204 instructions; at most 2112 are allowed. Repeat counts multiply what they repeat: " +
				"`(?-s:(.?.?.?.?.?.?.?.?.?.?){100})` alone makes 2201. A device name has at most 48 characters, so no count need be greater",
		},
		{strings.Repeat("(.?.?){500}", 93), "is too large: it would be compiled to 279095 instructions; at most 2112 are allowed. Repeat counts multiply what they repeat: `(?-s:(.?.?){500})` alone makes 3001."},
		{strings.Repeat("a{1000}", 146), "is too large: it would be compiled to 146148 instructions"},
		{`\pL{1000}`, "is too large: it would be compiled to classes of "},
		{strings.Repeat(`\pL`, 65), `is too large: it has 65 Unicode classes such as \pL; at most 64 are allowed. Device names consist of ASCII letters`},
		{"(?i)" + strings.Repeat("[B-\U0001e942]", 204), "is too large: it ignores case and has 204 ranges up to a character outside ASCII; at most 8 are allowed."},
		{"(?s-i:a)(?mi:" + strings.Repeat(`[B-\x{1e942}]`, 70) + ")", "is too large: it ignores case and has 70 ranges"},
		{strings.Repeat("a", 1025), "has 1025 characters; at most 1024 are allowed"},
	} {
		_, err := Parse(tc.pattern)
		var large *tooLargeError
		if !errors.As(err, &large) || !strings.HasPrefix(err.Error(), tc.want) {
			t.Errorf("%s:\n%v\nwant %s", shorten(tc.pattern), err, tc.want)
		}
	}
	// Its own parser refuses what multiplies beyond measure.
	if _, err := Parse("((a{1000}){1000}){1000}"); err == nil || !strings.Contains(err.Error(), "invalid repeat count") {
		t.Errorf("got %v", err)
	}
}

// What is counted is what is compiled, or a little more, and without repeat counts it is
// never too much.
func TestSizeOfPrograms(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	atoms := []string{"a", "b", "ab", ".", "[ab]", `\pL`, "^", "$", `\b`, "(?i:k)", "", "(?s:.)", "[^a]", `\d`}
	var expression func(depth int, counts bool) string
	expression = func(depth int, counts bool) string {
		if depth == 0 {
			return atoms[random.IntN(len(atoms))]
		}
		sub := func() string { return expression(depth-1, counts) }
		switch random.IntN(6) {
		case 0:
			return "(?:" + sub() + "|" + sub() + "|" + sub() + ")"
		case 1:
			repeats := []string{"*", "+", "?", "*?", "{2}", "{0}", "{0,3}", "{1,4}", "{3,}", "{0,}", "{1}", "{7,9}?"}
			if !counts {
				repeats = repeats[:4]
			}
			return "(?:" + sub() + ")" + repeats[random.IntN(len(repeats))]
		case 2:
			return "(" + sub() + ")"
		default:
			return sub() + sub()
		}
	}
	compared := 0
	for i := range 6_000 {
		counts := i%2 == 0
		text := expression(1+random.IntN(5), counts)
		tree, err := syntax.Parse(text, syntax.Perl)
		if err != nil {
			continue
		}
		counted := sizeOf(tree)
		program, err := syntax.Compile(tree.Simplify())
		if err != nil {
			t.Fatal(err)
		}
		runes := 0
		for _, in := range program.Inst {
			if in.Op == syntax.InstRune && len(in.Rune) > 2 {
				runes += len(in.Rune)
			}
		}
		if n := len(program.Inst); n > counted.instructions || runes > counted.runes {
			t.Fatalf("%s is counted as %+v and compiled to %d instructions, classes of %d", text, counted, n, runes)
		}
		if n := len(program.Inst); counted.instructions > 2*n+16 && !strings.Contains(text, "{0}") {
			t.Fatalf("%s is counted as %+v and compiled to %d instructions", text, counted, n)
		}
		if !counts && counted.instructions > 2*len([]rune(text))+64 {
			t.Fatalf("%s has %d characters and is counted as %+v", text, len([]rune(text)), counted)
		}
		compared++
	}
	if compared < 3000 {
		t.Errorf("only %d expressions were compared", compared)
	}
}
