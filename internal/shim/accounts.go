package shim

import (
	"bytes"
	"fmt"
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

// Accounts knows which SecretId belongs to which account. It is fed with Secrets,
// and is safe for concurrent use.
//
// A SecretId is accepted while exactly one Secret has it. Were the first of two to
// win, then whoever reads a SecretId in a log could put up a Secret with it before
// the owner's is made anew, and take the calls for its own account.
type Accounts struct {
	metrics *Metrics

	mu      sync.RWMutex
	pairs   map[types.NamespacedName]pair                // by Secret
	holders map[string]map[types.NamespacedName]struct{} // the Secrets that have a SecretId
	invalid map[types.NamespacedName]string              // what is wrong with a Secret
}

var _ qcloud.Credentials = (*Accounts)(nil)

// pair is what one Secret holds.
type pair struct {
	uid                 types.UID
	secretID, secretKey string
}

// NewAccounts returns Accounts without any.
func NewAccounts(metrics *Metrics) *Accounts {
	return &Accounts{
		metrics: metrics,
		pairs:   map[types.NamespacedName]pair{},
		holders: map[string]map[types.NamespacedName]struct{}{},
		invalid: map[types.NamespacedName]string{},
	}
}

// Lookup implements [qcloud.Credentials]. The account is the Secret's namespace.
func (a *Accounts) Lookup(secretID string) (secretKey, account string, ok bool) {
	a.mu.RLock()
	defer a.mu.RUnlock()
	holders := a.holders[secretID]
	if len(holders) != 1 {
		return "", "", false
	}
	for name := range holders {
		secretKey, account = a.pairs[name].secretKey, name.Namespace
	}
	return secretKey, account, true
}

// complaint is something to tell whoever looks after a Secret.
type complaint struct {
	secret  types.NamespacedName
	uid     types.UID
	reason  string
	message string
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
		return []complaint{{name, secret.UID, v1alpha1.ReasonInvalidCredentials, fault}}
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
	if existed && before.uid == now.uid && before.secretID == now.secretID {
		return nil
	}
	return a.duplicates(name, now.secretID)
}

// duplicates tells all who have the SecretId that the Secret named has it too. It
// names no Secret of another namespace to whom it is none of their business.
func (a *Accounts) duplicates(newest types.NamespacedName, secretID string) []complaint {
	if len(a.holders[secretID]) < 2 {
		return nil
	}
	var complaints []complaint
	for holder := range a.holders[secretID] {
		if holder != newest && len(a.holders[secretID]) > 2 {
			continue // it has been told
		}
		complaints = append(complaints, complaint{
			holder, a.pairs[holder].uid, v1alpha1.ReasonDuplicateSecretID,
			v1alpha1.CredentialsSecretID + ": another Secret, perhaps of another namespace, has the same, so neither is accepted: give each a SecretId of its own",
		})
	}
	return complaints
}

// remove forgets a Secret. If another had its SecretId, that is accepted now.
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
}

// count sets the metric.
func (a *Accounts) count() {
	var accepted int
	for _, holders := range a.holders {
		if len(holders) == 1 {
			accepted++
		}
	}
	a.metrics.secrets.WithLabelValues("accepted").Set(float64(accepted))
	a.metrics.secrets.WithLabelValues("duplicate").Set(float64(len(a.pairs) - accepted))
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
	return pair{secret.UID, string(id), string(key)}, ""
}
