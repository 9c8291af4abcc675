package fleet

import "time"

// Role is what an API token may do.
type Role string

// The roles. Monitor and service are MQTT logins; the others use HTTP.
const (
	RoleViewer   Role = "viewer"   // read everything but tokens and audit
	RoleOperator Role = "operator" // viewer, and deploy, roll back, configure, label
	RoleAdmin    Role = "admin"    // operator, and tokens, audit, devices' credentials
	RoleMonitor  Role = "monitor"  // subscribe to fleet topics
	RoleService  Role = "service"  // an orchestrator on the broker
)

// Valid reports whether r is a known role.
func (r Role) Valid() bool {
	switch r {
	case RoleViewer, RoleOperator, RoleAdmin, RoleMonitor, RoleService:
		return true
	}
	return false
}

// Includes reports whether a token of role r may do what need may do.
func (r Role) Includes(need Role) bool {
	rank := map[Role]int{RoleViewer: 1, RoleOperator: 2, RoleAdmin: 3}
	return rank[need] > 0 && rank[r] >= rank[need]
}

// APIToken is a bearer token without its secret.
type APIToken struct {
	ID         string     `json:"id" db:"id"`
	Name       string     `json:"name" db:"name"`
	Role       Role       `json:"role" db:"role" enum:"viewer,operator,admin,monitor,service"`
	Selector   string     `json:"selector" db:"selector" doc:"Label scope; empty is the whole fleet"`
	CreatedAt  time.Time  `json:"created_at" db:"created_at"`
	CreatedBy  string     `json:"created_by" db:"created_by"`
	ExpiresAt  *time.Time `json:"expires_at" db:"expires_at"`
	LastUsedAt *time.Time `json:"last_used_at" db:"last_used_at"`
	RevokedAt  *time.Time `json:"revoked_at" db:"revoked_at"`
}

// EnrollmentToken is a claim token without its secret.
type EnrollmentToken struct {
	ID          string     `json:"id"`
	Description string     `json:"description"`
	Labels      Labels     `json:"labels"`
	Serials     []string   `json:"serials" doc:"Only these serials may use it; empty is any"`
	MaxUses     int        `json:"max_uses" doc:"0 is without a limit"`
	Uses        int        `json:"uses"`
	AutoApprove bool       `json:"auto_approve"`
	CreatedAt   time.Time  `json:"created_at"`
	CreatedBy   string     `json:"created_by"`
	ExpiresAt   *time.Time `json:"expires_at"`
	RevokedAt   *time.Time `json:"revoked_at"`
}

// AuditEntry is one change: who, what, before, after, from where.
type AuditEntry struct {
	ID      int64     `json:"id"`
	At      time.Time `json:"at"`
	Actor   string    `json:"actor"`
	Action  string    `json:"action"`
	Subject string    `json:"subject"`
	Before  any       `json:"before"`
	After   any       `json:"after"`
	Remote  string    `json:"remote"`
}

// Actor is who makes a change and from where; it goes into the audit row.
type Actor struct {
	Name   string // token name and id, device id, or "system"
	Remote string // address of the peer; empty for the system
}

// System is the orchestrator itself.
var System = Actor{Name: "system"}
