package shim

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"batchtask.dev/operator/api/v1alpha1"
	"batchtask.dev/operator/internal/qcloud"
)

// Bounds of credentials, in bytes.
const (
	maxSecretID  = 128
	maxSecretKey = 1024
)

// maxCandidates is how many pairs with one SecretId are used, of as many namespaces.
const maxCandidates = 16

// Accounts knows the credentials of each account, by their SecretId. It is fed with Secrets,
// and is safe for concurrent use.
//
// Whoever may write Secrets in a namespace can copy the SecretId of another, so a SecretId says
// nothing about whose call it is: the key does. Of each namespace the oldest Secret with a
// SecretId is used, of at most 16 namespaces the oldest. What has become of a Secret its own
// namespace is told, and nothing about another's.
type Accounts struct {
	metrics *Metrics

	mu         sync.RWMutex
	pairs      map[types.NamespacedName]pair                // by Secret
	holders    map[string]map[types.NamespacedName]struct{} // the Secrets that have a SecretId
	candidates map[string][]qcloud.Candidate                // those that are used
	accepted   int                                          // all candidates
	invalid    map[types.NamespacedName]string              // what is wrong with a Secret
}

var _ qcloud.Credentials = (*Accounts)(nil)

// pair is what one Secret holds.
type pair struct {
	uid                 types.UID
	created             int64
	secretID, secretKey string
}

// NewAccounts returns Accounts without any.
func NewAccounts(metrics *Metrics) *Accounts {
	return &Accounts{
		metrics:    metrics,
		pairs:      map[types.NamespacedName]pair{},
		holders:    map[string]map[types.NamespacedName]struct{}{},
		candidates: map[string][]qcloud.Candidate{},
		invalid:    map[types.NamespacedName]string{},
	}
}

// Lookup implements [qcloud.Credentials]. The account is the Secret's namespace.
func (a *Accounts) Lookup(secretID string) []qcloud.Candidate {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.candidates[secretID]
}

// complaint is something to tell whoever looks after a Secret.
type complaint struct {
	secret  types.NamespacedName
	uid     types.UID
	reason  string
	message string
	private bool // for the log alone: the Secret's namespace must not learn of it
}

// set takes a Secret that was made or changed and returns what is wrong now and
// was not before.
func (a *Accounts) set(secret *corev1.Secret) []complaint {
	a.mu.Lock()
	defer a.mu.Unlock()
	defer a.count()
	name := types.NamespacedName{Namespace: secret.Namespace, Name: secret.Name}
	now, fault := readPair(secret)
	if fault != "" {
		known := a.invalid[name] == fault
		a.drop(name)
		a.invalid[name] = fault
		if known {
			return nil
		}
		return []complaint{{secret: name, uid: secret.UID, reason: v1alpha1.ReasonInvalidCredentials, message: fault}}
	}
	before, existed := a.pairs[name]
	if existed && before == now {
		return nil
	}
	a.drop(name)
	a.pairs[name] = now
	if a.holders[now.secretID] == nil {
		a.holders[now.secretID] = map[types.NamespacedName]struct{}{}
	}
	a.holders[now.secretID][name] = struct{}{}
	a.choose(now.secretID)
	if existed && before.uid == now.uid && before.secretID == now.secretID {
		return nil
	}
	return a.unused(name, now)
}

// choose decides which Secrets with a SecretId are used.
func (a *Accounts) choose(secretID string) {
	oldest := map[string]types.NamespacedName{} // by namespace
	for name := range a.holders[secretID] {
		if other, exists := oldest[name.Namespace]; !exists || a.older(name, other) < 0 {
			oldest[name.Namespace] = name
		}
	}
	names := slices.SortedFunc(maps.Values(oldest), a.older)
	a.accepted -= len(a.candidates[secretID])
	if len(names) == 0 {
		delete(a.candidates, secretID)
		return
	}
	var candidates []qcloud.Candidate // a new one: callers have the old
	for _, name := range names[:min(len(names), maxCandidates)] {
		candidates = append(candidates, qcloud.Candidate{Account: name.Namespace, Name: "Secret " + name.String(), SecretKey: a.pairs[name].secretKey})
	}
	a.candidates[secretID] = candidates
	a.accepted += len(candidates)
}

// older compares the ages of two Secrets; names decide between those of one second.
func (a *Accounts) older(x, y types.NamespacedName) int {
	return cmp.Or(cmp.Compare(a.pairs[x].created, a.pairs[y].created), cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name))
}

// unused tells who is not used now that a Secret has come.
func (a *Accounts) unused(newest types.NamespacedName, now pair) []complaint {
	var complaints []complaint
	first := newest
	for name := range a.holders[now.secretID] {
		if name.Namespace == newest.Namespace && a.older(name, first) < 0 {
			first = name
		}
	}
	tell := func(name types.NamespacedName) {
		complaints = append(complaints, complaint{
			secret: name, uid: a.pairs[name].uid, reason: v1alpha1.ReasonDuplicateSecretID,
			message: fmt.Sprintf("data.%s: Secret %q of this namespace has the same and is older, so that one is used: give each a SecretId of its own", v1alpha1.CredentialsSecretID, first.Name),
		})
	}
	switch {
	case first != newest:
		tell(newest)
	default:
		for name := range a.holders[now.secretID] {
			if name.Namespace == newest.Namespace && name != newest {
				tell(name)
			}
		}
	}
	if first == newest && !slices.ContainsFunc(a.candidates[now.secretID], func(c qcloud.Candidate) bool { return c.Account == newest.Namespace }) {
		complaints = append(complaints, complaint{
			secret: newest, uid: now.uid, private: true,
			message: fmt.Sprintf("the SecretId stands in Secrets of more than %d namespaces, of which the oldest are used, and this is none of them", maxCandidates),
		})
	}
	return complaints
}

// remove forgets a Secret. If another waited for its SecretId, that is used now.
func (a *Accounts) remove(name types.NamespacedName) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.drop(name)
	a.count()
}

func (a *Accounts) drop(name types.NamespacedName) {
	delete(a.invalid, name)
	p, exists := a.pairs[name]
	if !exists {
		return
	}
	delete(a.pairs, name)
	delete(a.holders[p.secretID], name)
	if len(a.holders[p.secretID]) == 0 {
		delete(a.holders, p.secretID)
	}
	a.choose(p.secretID)
}

// count sets the metric.
func (a *Accounts) count() {
	a.metrics.secrets.WithLabelValues("accepted").Set(float64(a.accepted))
	a.metrics.secrets.WithLabelValues("duplicate").Set(float64(len(a.pairs) - a.accepted))
	a.metrics.secrets.WithLabelValues("invalid").Set(float64(len(a.invalid)))
}

// readPair returns what a Secret holds, or what is wrong with it. Newlines at the
// end are left out: a Secret that is made of a file often has one.
func readPair(secret *corev1.Secret) (p pair, fault string) {
	id := bytes.TrimRight(secret.Data[v1alpha1.CredentialsSecretID], "\r\n")
	key := bytes.TrimRight(secret.Data[v1alpha1.CredentialsSecretKey], "\r\n")
	switch {
	case len(id) == 0 || len(id) > maxSecretID || bytes.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }):
		return pair{}, fmt.Sprintf("data.%s: must be 1 to %d printable ASCII characters without spaces", v1alpha1.CredentialsSecretID, maxSecretID)
	case len(key) == 0 || len(key) > maxSecretKey:
		return pair{}, fmt.Sprintf("data.%s: must be 1 to %d bytes", v1alpha1.CredentialsSecretKey, maxSecretKey)
	}
	return pair{secret.UID, secret.CreationTimestamp.Unix(), string(id), string(key)}, ""
}
